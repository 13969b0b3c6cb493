"""Who is using a file: what a living process has open is not removed to make room."""

from __future__ import annotations

from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, which does not remove a file that is open
    fcntl = None  # type: ignore[assignment]


def mark_in_use(path: Path) -> IO[bytes]:
    """A handle that marks a file as used until it is closed, or its process ends."""
    handle = path.open("rb")
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


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
