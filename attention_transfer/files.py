"""Atomic file writes: a file is complete or absent even if its process is killed; and the message when a write fails.

A file is written as a draft in its own folder, fsynced and renamed, and then the folder is fsynced: until the rename
the previous file is there, and from then on the new one. A killed process leaves its draft behind, a hidden file named
after its target; the next write there removes it.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from attention_transfer.errors import WriteError

if sys.platform != "win32":
    import fcntl

Buffer = bytes | bytearray | memoryview

DRAFT = re.compile(r"\..+\.[0-9a-f]{8}\.at-draft")

logger = logging.getLogger(__name__)


def write_atomically(path: str | os.PathLike[str], *pieces: Buffer, setting: str) -> None:
    """Write a file atomically: `path` holds either all of `pieces` or its previous content.

    Args:
        path: of the file; its folder is created, and drafts of it that killed processes left are removed.
        pieces: the content, one after the other.
        setting: the setting that moves the file elsewhere, as in "save_dir"; for the error message.

    Raises:
        WriteError: it cannot be written; the message names the path, its bytes, the reason and the remedy.
    """
    path = Path(path)
    size = sum(memoryview(piece).nbytes for piece in pieces)
    is_replaced = False
    try:
        make_folder(path.parent)
        remove_drafts(path.parent, path.name)
        with _draft(path) as file:
            for piece in pieces:
                _write(file, piece)
            os.fsync(file.fileno())
            if sys.platform == "win32":
                file.close()  # an open file cannot be renamed there
            os.replace(file.name, path)  # noqa: PTH105
        is_replaced = True
        _sync_folder(path.parent)
    except OSError as error:
        is_intact = not is_replaced and os.access(path, os.F_OK)
        intact = f" {path.name} is still the one from before." if is_intact else ""
        raise WriteError(write_failure(path, size, error, setting) + intact) from error


def check_writable(path: str | os.PathLike[str], size: int, setting: str) -> None:
    """Write a draft of one block beside `path` and remove it again, so that an error is raised before the real write.

    Args:
        path: of the file to be written later; its folder is created.
        size: bytes that it will have; for the error message.
        setting: as for `write_atomically`.

    Raises:
        WriteError: as from `write_atomically`.
    """
    path = Path(path)
    try:
        make_folder(path.parent)
        with _draft(path) as file:
            _write(file, bytes(min(size, 4096)))
            os.fsync(file.fileno())
    except OSError as error:
        raise WriteError(write_failure(path, size, error, setting)) from error


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, and fsync them."""
    made = [each for each in (folder, *folder.parents) if not os.access(each, os.F_OK)]
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        _sync_folder(each.parent)


def remove_drafts(folder: str | os.PathLike[str], name: str = "") -> None:
    """Remove the drafts in `folder`, of files whose names begin with `name`, that no process is writing any more."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return  # a missing folder has no drafts; an unreadable one raises when it is written to
    for each in names:
        if each.startswith(f".{name}") and DRAFT.fullmatch(each):
            with suppress(OSError):
                _remove_if_abandoned(Path(folder, each))


def _remove_if_abandoned(draft: Path) -> None:
    if sys.platform == "win32":
        draft.unlink()  # fails there while a process has it open
        return
    with draft.open("r+b") as file:
        # a writing process holds the lock of its draft; the system releases it when the process ends
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.unlink()


@contextmanager
def _draft(path: Path) -> Iterator[FileIO]:
    """A new file beside `path`, open and locked; afterwards it is closed, and removed unless it was renamed."""
    file = _open_draft(path)
    try:
        yield file
    finally:
        file.close()
        Path(file.name).unlink(missing_ok=True)


def _open_draft(path: Path) -> FileIO:
    while True:
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.at-draft")
        file = FileIO(draft, "x")
        if sys.platform == "win32":
            return file
        with suppress(OSError):  # without locks on this file system no process can take the draft for abandoned
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another process removed it as abandoned before it was locked


def _write(file: FileIO, piece: Buffer) -> None:
    rest = memoryview(piece).cast("B")
    while rest:
        rest = rest[os.write(file.fileno(), rest) :]


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        _warn_unsynced_folder(str(folder))
    finally:
        os.close(descriptor)


@cache
def _warn_unsynced_folder(folder: str) -> None:
    logger.warning(
        "the file system of %s cannot fsync a folder: after a power failure its previous content may be there", folder
    )


class DiskSpace(NamedTuple):
    """Free space of a file system for this user; None where it is not reported.

    Attributes:
        free: bytes.
        files: new files (inodes).
    """

    free: int | None
    files: int | None


def disk_space(folder: Path) -> DiskSpace:
    """Free space on the file system of `folder`, or of the nearest folder above it that exists."""
    if sys.platform == "win32":
        import shutil

        return DiskSpace(shutil.disk_usage(_existing(folder)).free, None)
    stats = os.statvfs(_existing(folder))
    # a file system that makes inodes as it needs them counts none at all
    return DiskSpace(stats.f_bavail * stats.f_frsize, stats.f_favail if stats.f_files else None)


def greatest_file() -> int | None:
    """Greatest size of a file in bytes (ulimit -f); None where there is no such limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def write_failure(path: Path, size: int, error: OSError, setting: str) -> str:
    """The message for a file that could not be written: path, bytes, reason, remedy.

    Args:
        path: of the file.
        size: bytes that it needs; 0 where that is unknown.
        error: raised by the write.
        setting: the setting that moves the file elsewhere.
    """
    where = _existing(path.parent)
    reason = _reason(where, size, error)
    needs = f"needs {size:,} bytes, but" if size else "cannot be written:"
    return f"{path} {needs} {reason}, or set {setting} to another folder."


def _reason(where: Path, size: int, error: OSError) -> str:
    denied = f"may not write to {where} ({error.strerror}); give it the right to"
    reasons = {
        errno.EDQUOT: f"the quota of this user on the disk of {where} is used up; make room there",
        errno.EFBIG: f"a file may have {greatest_file() or 0:,} bytes here (ulimit -f); raise the limit",
        errno.EROFS: f"the file system of {where} is read-only; have it mounted for writing",
        errno.EACCES: f"this user {denied}",
        errno.EPERM: f"this user {denied}",
        errno.EISDIR: "there is a folder of this name; move it away",
        errno.EEXIST: f"{where} is no folder; move it away",
        errno.ENOTDIR: f"{where} is no folder; move it away",
        errno.ENAMETOOLONG: "its name is too long for the file system; shorten experiment_name",
    }
    if error.errno != errno.ENOSPC:
        return reasons.get(error.errno or 0, f"the system says {error.strerror!r}; look at {where}")
    room = disk_space(where)
    if room.files == 0:
        return f"the file system of {where} has no inodes left for a new file; remove files there"
    if room.free is not None and room.free < size:
        return f"the disk of {where} has {room.free:,} bytes free; make room there"
    return f"the disk of {where} was full; make room there"


def _existing(folder: Path) -> Path:
    absolute = folder.absolute()
    return next(each for each in (absolute, *absolute.parents) if os.access(each, os.F_OK))
