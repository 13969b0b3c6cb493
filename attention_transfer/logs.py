"""The library's log: messages logged once, captured, or sent to standard output."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from attention_transfer.progress import write_line

logger = logging.getLogger(__name__)


@lru_cache(maxsize=1024)
def log_once(message: str, level: int = logging.INFO) -> None:
    """Log a message that recurs, such as once a batch, the first time only; `log_once.cache_clear()` resets this."""
    logger.log(level, "%s", message)


LIBRARY = logging.getLogger("attention_transfer")


class _Buffer(logging.Handler):
    """Buffers records until the log file is open; bounded, because it stays attached until the run ends."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=100)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def is_printed_elsewhere(record: logging.LogRecord, handler: logging.Handler) -> bool:
    """Whether another handler than `handler` writes a record to standard output or standard error."""
    return any(
        other is not handler and _writes_to_console(other) and record.levelno >= other.level and other.filter(record)
        for other in _handlers_of(record)
    )


def _handlers_of(record: logging.LogRecord) -> Iterator[logging.Handler]:
    source: logging.Logger | None = logging.getLogger(record.name)
    while source is not None:
        yield from source.handlers
        source = source.parent if source.propagate else None


def _writes_to_console(handler: logging.Handler) -> bool:
    # rich's handler has a console of its own instead of a stream
    stream = getattr(handler, "stream", None) or getattr(getattr(handler, "console", None), "file", None)
    if stream is None or isinstance(handler, logging.FileHandler) or getattr(stream, "closed", False):
        return False
    console = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return any(stream is each for each in console) or bool(getattr(stream, "isatty", bool)())


class ConsoleHandler(logging.Handler):
    """Writes lines to standard output without breaking the progress bars.

    A record that a user's own handler writes to the console, as after logging.basicConfig(), is not written again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(lambda record: not is_printed_elsewhere(record, self))

    def emit(self, record: logging.LogRecord) -> None:
        write_line(self.format(record))


@contextmanager
def capture_logs() -> Iterator[Iterable[logging.LogRecord]]:
    """Set the library's log level to INFO for a run; gives the records that were logged before the log file is open."""
    level, buffer = LIBRARY.level, _Buffer()
    LIBRARY.setLevel(logging.INFO)
    LIBRARY.addHandler(buffer)
    try:
        yield buffer.records
    finally:
        LIBRARY.removeHandler(buffer)
        LIBRARY.setLevel(level)


@contextmanager
def log_to_stdout() -> Iterator[None]:
    """Send the library's log to standard output, as during a run."""
    handler = ConsoleHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    LIBRARY.addHandler(handler)
    try:
        with capture_logs():
            yield
    finally:
        LIBRARY.removeHandler(handler)
