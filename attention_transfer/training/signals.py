"""Being asked to stop: SIGTERM from a scheduler, Ctrl-C, Jupyter's interrupt."""

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
"""Seconds in which repeated signals are one request: a terminal, a launcher and a scheduler each pass it on."""

SAVED = "the batch is finished and the run saved"
NOT_SAVED = (
    "the batch is finished; what is trained since the last completed epoch is lost, for a loader of your own has no "
    "position to go on from"
)
TESTED = "training is over, and the test goes on to its end"

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers


class Stopped(Exception):  # noqa: N818 - no error: the run ends as it was asked to
    """Leaves a run at the end of a batch.

    Attributes:
        by: the name of the signal, or the reason that a callback gave.
    """

    def __init__(self, by: str) -> None:
        super().__init__(f"asked to stop by {by}")
        self.by = by


class SignalHandler:
    """Notices, inside a `with`, that the run is asked to stop: a first SIGINT or SIGTERM is remembered.

    A repetition within a second is the same request; the end of the `with` waits for it, so that it does not hit
    whoever goes on from there. A later one does what it did before the `with`: by default SIGINT raises
    KeyboardInterrupt, and SIGTERM ends the process. A signal that is ignored stays so, as `nohup` and a shell's `&`
    want it. Outside the main thread, where Python lets nobody set a handler, and in processes that are forked inside
    the `with`, no request is noticed.

    Args:
        promise: what a first signal is answered with.

    Attributes:
        promise: the same; may be changed meanwhile.
        signal: the first signal, None as long as there was none.

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
        self._asked = 0.0
        self._process = os.getpid()
        self._before: dict[signal.Signals, Handler] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before = signal.getsignal(number)
                # one that C code has set is unknown to Python, which could not put it back
                if before is not None and before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.signal is not None:
            while self._before and (left := self._asked + ONE_REQUEST - time.monotonic()) > 0:
                time.sleep(left)
        self._put_back()

    def _put_back(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            self._ask_a_child(number)
        elif self.signal is None:
            self.signal, self._asked = signal.Signals(number), time.monotonic()
            _say(f"{self.signal.name}: {self.promise}; once more stops at once")
        elif time.monotonic() - self._asked >= ONE_REQUEST:
            self._put_back()
            signal.raise_signal(number)

    def _ask_a_child(self, number: int) -> None:
        """A forked process has inherited the handlers: its parent decides about Ctrl-C, and ends it by SIGTERM."""
        if number == signal.SIGTERM:
            self._put_back()
            signal.raise_signal(number)


def _say(sentence: str) -> None:
    # A handler may interrupt whoever holds the locks of logging or of sys.stderr; this takes none.
    with suppress(OSError, ValueError):
        if sys.__stderr__ is not None:
            os.write(sys.__stderr__.fileno(), f"\n{sentence}\n".encode())
