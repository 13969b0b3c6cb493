"""The lock on a run's name: a second run of the same name is refused while the first lives."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
from pathlib import Path

from attention_transfer.errors import ConfigError, WriteError
from attention_transfer.files import make_folder, write_failure

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

logger = logging.getLogger(__name__)

_LOCKED = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
_CANNOT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_LOCKED_BYTE = 1 << 30  # far behind the text, which others must read: Windows denies reading locked bytes

_guard = threading.Lock()
_held: dict[tuple[int, int], int] = {}
"""The processes that hold the locks of this one, by device and inode; a forked process inherits its parent's."""


class RunLock:
    """A lock on the name of a run, held until `release`, or until its process ends in any way.

    It is a POSIX record lock: forked processes, such as a loader's workers, do not inherit it. As closing any handle of
    the file in this process would release the lock, the file is opened once. It is removed while it is locked; a
    process that has opened a file that was removed meanwhile opens a new one.

    Args:
        path: the file to lock, made if need be; its text names the holder.
        name: of the run, for the message.
        setting: the setting that names the file's folder.
        held: False takes no lock, as in all processes but the main one.

    Raises:
        ConfigError: another run holds it, in this process or another; the message names it.
        WriteError: the file cannot be made.
    """

    def __init__(
        self, path: str | os.PathLike[str], name: str, *, setting: str = "save_dir", held: bool = True
    ) -> None:
        self._path, self._name, self._setting = Path(path), name, setting
        self._process = os.getpid()
        self._handle: int | None = None
        if held:
            with _guard:
                self._handle = self._take()

    def release(self) -> None:
        """Release the lock; does nothing a second time, or in a forked process."""
        if self._handle is None or self._process != os.getpid():
            return
        with _guard:
            handle, self._handle = self._handle, None
            _held.pop(_identity(os.fstat(handle)), None)
            if sys.platform == "win32":
                # an open file cannot be removed there; one that the next run has opened stays
                os.close(handle)
                _remove(self._path)
            else:
                try:
                    if _is_file_of(handle, self._path):
                        _remove(self._path)
                finally:
                    os.close(handle)

    def _take(self) -> int:
        while True:
            self._refuse_in_this_process()
            handle = self._open()
            try:
                self._lock(handle)
                if not _is_file_of(handle, self._path):
                    os.close(handle)
                    continue
                _write_holder(handle, f"process {os.getpid()} on host {socket.gethostname()}")
            except BaseException:
                os.close(handle)
                raise
            _held[_identity(os.fstat(handle))] = os.getpid()
            return handle

    def _refuse_in_this_process(self) -> None:
        try:
            file = _identity(self._path.stat())
        except OSError:  # missing, or it cannot be opened either
            return
        if _held.get(file) == os.getpid():
            raise self._refusal("this process")

    def _open(self) -> int:
        try:
            make_folder(self._path.parent)
            return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise WriteError(write_failure(self._path, 0, error, self._setting)) from error

    def _lock(self, handle: int) -> None:
        try:
            if sys.platform == "win32":
                os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKED_BYTE)
        except OSError as error:
            if error.errno in _LOCKED:
                raise self._refusal(_read_holder(handle)) from None
            if error.errno not in _CANNOT_LOCK:
                raise
            logger.warning(
                "the file system of %s has no locks (%s): make sure that no other run has the name %r, or set %s to "
                "another disk",
                self._path.parent, error.strerror, self._name, self._setting,
            )  # fmt: skip

    def _refusal(self, holder: str) -> ConfigError:
        return ConfigError(
            f"experiment_name is {self._name!r}, and a run of this name is alive ({holder}): wait for it, stop it, or "
            "choose another name."
        )


def _identity(file: os.stat_result) -> tuple[int, int]:
    return file.st_dev, file.st_ino


def _is_file_of(handle: int, path: Path) -> bool:
    """Whether `path` is still the open file, which may have been removed or moved meanwhile."""
    try:
        return _identity(path.stat()) == _identity(os.fstat(handle))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # an empty lock file does no harm
        logger.debug("%s stays: %s", path, error)


def _write_holder(handle: int, holder: str) -> None:
    try:
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, holder.encode())
    except OSError as error:
        # the lock works on a full disk too; only the refusal cannot name the holder
        logger.debug("the lock's file stays empty: %s", error)


def _read_holder(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    return os.read(handle, 1000).decode(errors="replace") or "another process"
