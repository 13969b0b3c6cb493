"""Between two batches: whether the run is saved, or stops because it was asked to; all processes do alike."""

from __future__ import annotations

import time
from collections.abc import Callable

from attention_transfer.training.callbacks.base import CallbackList
from attention_transfer.training.checkpointing.state import Unfinished
from attention_transfer.training.context import RunContext
from attention_transfer.training.epoch import STEPS_BETWEEN_CHECKS
from attention_transfer.training.epoch_progress import EpochProgress
from attention_transfer.training.signals import SignalHandler, Stopped


class AutoSave:
    """Saves an unfinished epoch every save_minutes and before a stop.

    One process decides after each batch; several agree every few batches, because agreeing makes them wait for each
    other.

    Args:
        run: is saved.
        observers: save it.
        request: tells whether the run is asked to stop.
        keeps_position: whether the loader can go on inside an epoch; if not, an unfinished epoch is not saved.
    """

    def __init__(
        self, run: RunContext, callbacks: CallbackList, request: SignalHandler, *, keeps_position: bool
    ) -> None:
        self._run = run
        self._observers = callbacks
        self._request = request
        self._keeps_position = keeps_position
        self._saved = time.monotonic()

    def after_batch(self, position: EpochProgress, began: float) -> None:
        """Save and stop after a batch of training, if it is time to.

        Args:
            position: of the epoch.
            began: when the epoch began, less what was done of it before, on the clock time.perf_counter().

        Raises:
            Stopped: the run is saved, as far as it can be.
        """
        # the save of a whole epoch is about to come
        is_last = position.batches == self._run.batches
        is_due = self._keeps_position and not is_last and self._minutes() >= self._run.config.save_minutes
        self._pause(position.batches, is_due, lambda: self._save(position, began), is_last=is_last)

    def after_validation_batch(self, batches: int, position: EpochProgress, began: float) -> None:
        """Stop after a batch of validation; the epoch is saved as trained and not yet validated.

        Raises:
            Stopped: the run is saved, as far as it can be.
        """
        self._pause(batches, False, lambda: self._save(position, began))

    def after_epoch(self) -> None:
        """Stop after an epoch that was saved as a whole.

        Raises:
            Stopped: nothing is lost.
        """
        self._saved = time.monotonic()
        self._pause(0, False, lambda: None)

    def _pause(self, batches: int, is_due: bool, save: Callable[[], None], *, is_last: bool = False) -> None:
        runtime = self._run.runtime
        if runtime.world_size > 1 and batches % STEPS_BETWEEN_CHECKS and not is_last:
            return
        wishes = runtime.all_gather_object((self._request.signal, is_due))
        signal = next((wanted for wanted, _ in wishes if wanted is not None), None)
        # only the main process looks at the clock, so that all save at once
        if signal is not None or wishes[0][1]:
            save()
        if signal is not None:
            raise Stopped(signal)

    def _minutes(self) -> float:
        return (time.monotonic() - self._saved) / 60

    def _save(self, position: EpochProgress, began: float) -> None:
        if not self._keeps_position:
            return
        position.check()
        self._run.state.check_finite()
        state, sums = self._run.state, position.sums.over_processes(self._run.runtime)
        state.unfinished = Unfinished(position.batches, position.images, sums, time.perf_counter() - began)
        self._observers.pause()
        state.unfinished = None
        self._saved = time.monotonic()
