"""Two runs of one name would overwrite each other's files: the second is refused while the first lives."""

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
_LOCKED_BYTE = 1 << 30  # far behind the text, which others are to read: Windows keeps them from what is locked

_guard = threading.Lock()
_held: dict[tuple[int, int], int] = {}
"""The processes that hold the locks of this one, by device and inode; a forked process inherits its parent's."""


class RunLock:
    """Holds the name of a run until `release`, or until its process ends, however it ends.

    It is a POSIX record lock: processes that are forked from its own, such as a loader's workers, have no part in it.
    As closing any handle of the file in this process would give the lock up, the file is opened once. It is removed
    while it is locked; who has opened a file that is removed by then takes another.

    Args:
        path: the file that is locked, made if need be; says who holds it.
        name: of the run, for the message.
        setting: names the folder of the file.
        held: False holds nothing, as in processes beside the main one.

    Raises:
        ConfigError: another run holds it, in this process or another; the message says which.
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
        """Give the name free; a second time, or in a forked process, nothing happens."""
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
        except OSError:  # not there, or nothing that could be opened either
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
                "the file system of %s has no locks (%s): keep other runs from the name %r yourself, or set %s to "
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
    """Whether `path` still leads to the open file, which may have been removed in the meantime, or moved elsewhere."""
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
        # the lock holds on a full disk too; who is refused is not told by whom
        logger.debug("the lock's file stays empty: %s", error)


def _read_holder(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    return os.read(handle, 1000).decode(errors="replace") or "another process"
