"""Who is using a file: what a living process has open is not removed to make room."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, which does not remove a file that is open
    fcntl = None  # type: ignore[assignment]


class Mark:
    """Marks a file as used until it is closed, or its process ends.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._process = os.getpid()
        self._handle = path.open("rb")
        if fcntl is not None:
            fcntl.flock(self._handle, fcntl.LOCK_SH)

    def close(self) -> None:
        """Take the mark away; a second time nothing happens."""
        # Processes that were forked meanwhile share the lock: closing alone would leave it to them, and one of them
        # must not take it from their parent.
        if fcntl is not None and not self._handle.closed and self._process == os.getpid():
            fcntl.flock(self._handle, fcntl.LOCK_UN)
        self._handle.close()


def mark_in_use(path: Path) -> Mark:
    """Mark a file as used."""
    return Mark(path)


def is_in_use(path: Path) -> bool:
    """Whether any process has marked the file."""
    if fcntl is None:
        return False
    with path.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
