"""Stop requests: SIGTERM from a scheduler, Ctrl-C, Jupyter's interrupt."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

ONE_REQUEST = 1.0
"""Seconds within which repeated signals count as one: a terminal, a launcher and a scheduler each send their own."""

SAVED = "the batch is finished and the run saved"
NOT_SAVED = (
    "the batch is finished; what is trained since the last completed epoch is lost, for a loader of your own has no "
    "position to go on from"
)
TESTED = "training is over, and the test goes on to its end"

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers


class Stopped(Exception):  # noqa: N818 - no error: the run ends as requested
    """Ends a run after the current batch.

    Attributes:
        by: the name of the signal, or the reason given by a callback.
    """

    def __init__(self, by: str) -> None:
        super().__init__(f"asked to stop by {by}")
        self.by = by


class SignalHandler:
    """A context manager that records the first SIGINT or SIGTERM as a request to stop.

    A repetition within a second is the same request; leaving the `with` waits for it, so that it does not hit the code
    that follows. A later one does what it did before the `with`: by default SIGINT raises KeyboardInterrupt, and
    SIGTERM ends the process. Ignored signals stay ignored, as `nohup` and a shell's `&` require. Outside the main
    thread, where Python cannot set a handler, and in processes forked inside the `with`, no request is recorded.

    Args:
        promise: printed on the first signal.

    Attributes:
        promise: the same; may be changed inside the `with`.
        signal: the first signal; None if there was none.

    Example:
        with SignalHandler() as request:
            for batch in loader:
                train(batch)
                if request.signal is not None:
                    break
    """

    def __init__(self, promise: str = SAVED) -> None:
        self.promise = promise
        self.signal: signal.Signals | None = None
        self._requested = 0.0
        self._process = os.getpid()
        self._before: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                # None: set by C code, so that Python could not restore it
                if before is not None and before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.signal is not None:
            while self._before and (left := self._requested + ONE_REQUEST - time.monotonic()) > 0:
                time.sleep(left)
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._handle_in_child(number)
        elif self.signal is None:
            self.signal, self._requested = signal.Signals(number), time.monotonic()
            _print(f"{self.signal.name}: {self.promise}; once more stops at once")
        elif time.monotonic() - self._requested >= ONE_REQUEST:
            self._restore()
            signal.raise_signal(number)

    def _handle_in_child(self, number: int) -> None:
        """A forked process has inherited the handlers: its parent handles Ctrl-C, and ends it by SIGTERM."""
        if number == signal.SIGTERM:
            self._restore()
            signal.raise_signal(number)


def _print(sentence: str) -> None:
    # the interrupted code may hold the locks of logging or of sys.stderr; this takes none
    with suppress(OSError, ValueError):
        if sys.__stderr__ is not None:
            os.write(sys.__stderr__.fileno(), f"\n{sentence}\n".encode())
