"""Rows of bytes in one file, each of them whole or absent, even if a writing process is killed.

The file is allocated in full under a temporary name and then linked to its own, so that a file is never partial, and
the disk cannot fill up under a memory map. Every row has a checksum that is verified on each read; a row that does not
agree with its checksum counts as absent. Several processes of a machine may read and fill one file at a time.

    bytes                     content
    0 .. 4096                 magic, then JSON: identity, number of rows, description with the time of creation
    4 * rows                  CRC-32 of each row, seeded with identity and row; 0 = absent
    8 * (rows + 1)            offset of each row, from the first on
    the rest                  the rows
"""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from attention_transfer.cache.in_use import Mark, mark_in_use
from attention_transfer.errors import CacheError

Bytes = npt.NDArray[np.uint8]

logger = logging.getLogger(__name__)

MAGIC = b"attention-transfer records 1\n"
HEADER = 4096
_ABANDONED_SECONDS = 3600.0
_NO_SUMS, _NO_STARTS, _NO_BYTES = np.empty(0, np.uint32), np.empty(0, np.int64), np.empty(0, np.uint8)


class Records:
    """An open file of records, to be closed; when pickled, it is reopened by its path in the other process.

    `read` returns copies, so that no reference to them, such as from a traceback, holds the file open.

    Args:
        path: of a file made by `create`.
        identity: cache key of the rows; a file with another one is refused.

    Attributes:
        about: the description given to `create`.
        is_writable: False where the file or its folder forbids writing; rows can then be read only.
        is_closed: whether `close` was called.

    Raises:
        CacheError: the file is missing, damaged or of another identity; in a method: it was closed.

    Example:
        with Records(path, identity) as records:
            row = records.read(0)
    """

    def __init__(self, path: str | os.PathLike[str], identity: str) -> None:
        self.path = Path(path)
        self.identity = identity
        self.is_closed = False
        self._mark: Mark | None = None
        self._map: mmap.mmap | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        header = read_header(self.path)
        if header["identity"] != self.identity:
            raise CacheError(f"{self.path} holds records of another identity; remove it to have it made anew.")
        self.about: dict[str, Any] = header["about"]
        self._count: int = header["rows"]
        self.is_writable = _may_write(self.path)
        tables = HEADER + 4 * self._count + _padding(self._count) + 8 * (self._count + 1)
        if self.path.stat().st_size < tables:
            raise CacheError(f"{self.path} is cut short; remove it to have it made anew.")
        self._mark = mark_in_use(self.path)
        self._map = _map_file(self.path, is_writable=self.is_writable)
        # No name but these attributes refers to the map: while an array on it is alive, it cannot be closed.
        self._checksums = np.frombuffer(self._map, np.uint32, self._count, HEADER)
        first = HEADER + 4 * self._count + _padding(self._count)
        self._starts = np.frombuffer(self._map, np.int64, self._count + 1, first)
        self._rows = np.frombuffer(self._map, np.uint8, -1, first + 8 * (self._count + 1))
        if int(self._starts[-1]) != len(self._rows):
            raise CacheError(f"{self.path} is cut short; remove it to have it made anew.")
        self._seed = zlib.crc32(self.identity.encode())

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self.is_closed = True
        self._checksums, self._starts, self._rows = _NO_SUMS, _NO_STARTS, _NO_BYTES
        mark, self._mark = self._mark, None
        if mark is not None:
            mark.close()
        mapped, self._map = self._map, None
        if mapped is not None:
            try:
                mapped.close()
            except BufferError:
                logger.warning("%s is being read by another thread: it is closed when that is done", self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self.is_closed:
            raise CacheError(f"{self.path} is closed; open it anew.")

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self)) if self.is_closed else {"path": self.path, "identity": self.identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "is_closed" in state:
            vars(self).update(state)
        else:
            self.__init__(state["path"], state["identity"])  # type: ignore[misc]

    def __len__(self) -> int:
        return self._count

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], identity: str, sizes: Sequence[int] | npt.NDArray[np.int64], **about: Any
    ) -> Records:
        """Create a file of absent rows, or open the existing one.

        Args:
            path: of the file; its folder is created.
            identity: cache key of the rows.
            sizes: bytes of each row.
            about: a description of the content, any JSON values.

        Raises:
            CacheError: the disk has no room, or the folder cannot be written to.
        """
        path = Path(path)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(sizes, np.int64))])
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _remove_abandoned(path.parent)
                _allocate(path, _header(identity, len(sizes), about), starts)
            except OSError as error:
                raise CacheError(_cannot_be_made(path, len(sizes), int(starts[-1]), error)) from error
        return cls(path, identity)

    def size_of(self, row: int) -> int:
        """Bytes of a row."""
        self._check_open()
        return int(self._starts[row + 1] - self._starts[row])

    def present(self) -> npt.NDArray[np.bool_]:
        """Which rows have been written, bool [rows]; whether they are intact is checked when they are read."""
        self._check_open()
        present: npt.NDArray[np.bool_] = np.asarray(self._checksums) != 0
        return present

    def read(self, row: int) -> Bytes | None:
        """The bytes of a row, verified; None where it is absent or damaged."""
        self._check_open()
        checksum = int(self._checksums[row])
        if checksum == 0:
            return None
        content: Bytes = self._rows[self._starts[row] : self._starts[row + 1]].copy()
        return content if checksum == self._checksum(row, content) else None

    def read_equal(
        self, rows: npt.NDArray[np.int64], dtype: npt.DTypeLike
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Some rows [n] of a file whose rows all have one size, verified.

        Returns:
            their numbers of this dtype [n, numbers], zeros where a row is absent or damaged; and whether it is neither,
            bool [n].
        """
        self._check_open()
        checksums = self._checksums[rows]
        contents: Bytes = self._rows.reshape(len(self), -1)[rows]
        correct = [self._checksum(row, content) for row, content in zip(rows.tolist(), contents, strict=True)]
        found: npt.NDArray[np.bool_] = checksums == np.array(correct, np.uint32)
        contents[~found] = 0
        return contents.view(dtype), found

    def write(self, rows: Iterable[int], contents: Iterable[Bytes]) -> int:
        """Write rows where they are absent or damaged; intact rows stay as they are.

        Returns:
            the number of rows that were written.
        """
        self._check_open()
        written = 0
        with self._lock():
            for row, content in zip(rows, contents, strict=True):
                if self.read(row) is None:
                    # A concurrent reader sees a row that does not match its checksum, which counts as absent.
                    self._checksums[row] = 0
                    self._rows[self._starts[row] : self._starts[row + 1]] = content
                    self._checksums[row] = self._checksum(row, content)
                    written += 1
        return written

    def clear(self) -> None:
        """Make every row absent."""
        self.forget(range(len(self)))

    def forget(self, rows: Iterable[int]) -> None:
        """Make some rows absent."""
        self._check_open()
        with self._lock():
            self._checksums[list(rows)] = 0

    def _lock(self) -> Any:
        # A write takes less than a millisecond; the default polls every fifty.
        return FileLock(self.path.with_suffix(self.path.suffix + ".lock")).acquire(poll_interval=0.002)

    def damaged(self) -> list[int]:
        """Rows that are present but do not match their checksum; reads the whole file."""
        return [int(row) for row in np.flatnonzero(self.present()) if self.read(int(row)) is None]

    def touch(self) -> None:
        """Set the file's time of last use to now; the least recently used file is evicted first."""
        if self.is_writable:
            os.utime(self.path)

    def _checksum(self, row: int, content: Bytes) -> int:
        # 0 stands for an absent row
        return zlib.crc32(np.ascontiguousarray(content).data, zlib.crc32(row.to_bytes(8, "little"), self._seed)) or 1


def read_header(path: Path) -> dict[str, Any]:
    """Identity, number of rows and description of a file of records.

    Raises:
        CacheError: it cannot be read, or is not a file of records.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEADER)
    except OSError as error:
        raise CacheError(f"{path} cannot be read ({error.strerror}); remove it to have it made anew.") from error
    try:
        if not head.startswith(MAGIC):
            raise ValueError("it does not begin as a file of records does")
        header: dict[str, Any] = json.loads(head[len(MAGIC) :].rstrip(b"\0"))
    except ValueError as error:
        raise CacheError(f"{path} is no file of records, or damaged; remove it to have it made anew.") from error
    return header


def file_size(sizes: Sequence[int] | npt.NDArray[np.int64]) -> int:
    """Bytes of a file with rows of these sizes."""
    rows = len(sizes)
    return HEADER + 4 * rows + _padding(rows) + 8 * (rows + 1) + int(np.sum(sizes))


def _map_file(path: Path, *, is_writable: bool) -> mmap.mmap:
    with path.open("r+b" if is_writable else "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if is_writable else mmap.ACCESS_READ)


def _padding(rows: int) -> int:
    return 4 * (rows % 2)


def _header(identity: str, rows: int, about: Mapping[str, Any]) -> bytes:
    made = time.strftime("%Y-%m-%d %H:%M:%S")
    text = MAGIC + json.dumps({"identity": identity, "rows": rows, "about": {"made": made, **about}}).encode()
    if len(text) > HEADER:
        raise ValueError(f"the description of the records has {len(text)} bytes; at most {HEADER} are possible.")
    return text.ljust(HEADER, b"\0")


def _allocate(path: Path, header: bytes, starts: npt.NDArray[np.int64]) -> None:
    rows = len(starts) - 1
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", suffix=path.suffix) as file:
        _reserve(file.fileno(), len(header) + 4 * rows + _padding(rows) + 8 * (rows + 1) + int(starts[-1]))
        file.write(header)
        file.seek(len(header) + 4 * rows + _padding(rows))
        file.write(starts.tobytes())
        file.flush()
        os.fsync(file.fileno())
        Path(file.name).chmod(0o666 & ~_umask())
        try:
            path.hardlink_to(file.name)
        except FileExistsError:
            return  # another process was faster


def _reserve(descriptor: int, size: int) -> None:
    """Allocate all blocks of a file; without posix_fallocate by writing zeros."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    block = bytes(1 << 20)
    for first in range(0, size, len(block)):
        os.write(descriptor, block[: size - first])
    os.lseek(descriptor, 0, os.SEEK_SET)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _may_write(path: Path) -> bool:
    # root may write to any file, but one without write permission is meant to stay unchanged
    return bool(path.stat().st_mode & 0o222) and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while allocating."""
    for draft in folder.glob(".new-*"):
        try:
            if time.time() - draft.stat().st_mtime > _ABANDONED_SECONDS:
                draft.unlink()
        except OSError:
            continue


def _cannot_be_made(path: Path, rows: int, size: int, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"{path} needs {size / 1e6:,.0f} MB for {rows} records, which the disk does not have; make room, set "
            "cache_dir to another disk, or switch the cache off."
        )
    return f"{path} cannot be made ({error.strerror}); set cache_dir to a folder that can be written to."
