"""The library's log: messages logged once, captured, or sent to standard output."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)


@lru_cache(maxsize=1024)
def log_once(message: str, level: int = logging.INFO) -> None:
    """Log something that holds for every batch the first time alone; `log_once.cache_clear()` starts anew."""
    logger.log(level, "%s", message)


LIBRARY = logging.getLogger("attention_transfer")


class _Buffer(logging.Handler):
    """Keeps what is said before there is a file to write it to; bounded, for it listens on until the run ends."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=100)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _ConsoleHandler(logging.Handler):
    """Writes lines to standard output without breaking the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


@contextmanager
def capture_logs() -> Iterator[Iterable[logging.LogRecord]]:
    """For the time of a run the library speaks; what it says before the log is open is kept."""
    level, keep = LIBRARY.level, _Buffer()
    LIBRARY.setLevel(logging.INFO)
    LIBRARY.addHandler(keep)
    try:
        yield keep.records
    finally:
        LIBRARY.removeHandler(keep)
        LIBRARY.setLevel(level)


@contextmanager
def log_to_stdout() -> Iterator[None]:
    """What the library says meanwhile goes to standard output, as during a run."""
    handler = _ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    LIBRARY.addHandler(handler)
    try:
        with capture_logs():
            yield
    finally:
        LIBRARY.removeHandler(handler)
