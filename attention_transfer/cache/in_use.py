"""Marks on files in use: a file that a running process has open is not evicted."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, which does not remove a file that is open
    fcntl = None  # type: ignore[assignment]


class Mark:
    """A mark that a file is in use, a shared lock held until it is closed or its process ends.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._process = os.getpid()
        self._handle = path.open("rb")
        if fcntl is not None:
            fcntl.flock(self._handle, fcntl.LOCK_SH)

    def close(self) -> None:
        """Remove the mark; a second call does nothing."""
        # Processes forked meanwhile share the lock: closing alone would leave it with them, and they must not release
        # their parent's.
        if fcntl is not None and not self._handle.closed and self._process == os.getpid():
            fcntl.flock(self._handle, fcntl.LOCK_UN)
        self._handle.close()


def mark_in_use(path: Path) -> Mark:
    """Mark a file as in use."""
    return Mark(path)


def is_in_use(path: Path) -> bool:
    """Whether any process has marked the file as in use."""
    if fcntl is None:
        return False
    with path.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
