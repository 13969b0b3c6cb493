"""Between two batches: whether the run is saved, or stops because it was asked to; all processes do alike."""

from __future__ import annotations

import time
from collections.abc import Callable

from attention_transfer.training.callbacks.base import CallbackList
from attention_transfer.training.context import RunContext
from attention_transfer.training.epoch import STEPS_BETWEEN_CHECKS
from attention_transfer.training.epoch_progress import EpochProgress
from attention_transfer.training.signals import SignalHandler, Stopped


class AutoSave:
    """Saves an unfinished epoch every save_minutes and before a stop.

    One process decides after each batch; several agree every few batches, because agreeing makes them wait for each
    other.

    Args:
        run: is saved, and tells whether a callback has ended it.
        callbacks: save it.
        request: tells whether a signal asks the run to stop.
        keeps_position: whether the loader can start inside an epoch; if not, an unfinished epoch is not saved.
    """

    def __init__(
        self, run: RunContext, callbacks: CallbackList, request: SignalHandler, *, keeps_position: bool
    ) -> None:
        self._run = run
        self._callbacks = callbacks
        self._request = request
        self._keeps_position = keeps_position
        self._saved = time.monotonic()

    def after_batch(self, progress: EpochProgress) -> None:
        """Save and stop after a batch of training, if it is time to.

        Raises:
            Stopped: the run is saved, as far as it can be.
        """
        # the save of a whole epoch is about to come
        is_last = progress.batches == self._run.batches
        is_due = self._keeps_position and not is_last and self._minutes() >= self._run.config.save_minutes
        self._pause(progress.batches, is_due, lambda: self._save(progress), is_last=is_last)

    def after_validation_batch(self, batches: int, progress: EpochProgress) -> None:
        """Stop after a batch of validation; the epoch is saved as trained and not yet validated.

        Raises:
            Stopped: the run is saved, as far as it can be.
        """
        self._pause(batches, False, lambda: self._save(progress))

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
        signal = self._request.signal
        wishes = runtime.all_gather_object((None if signal is None else signal.name, self._run.stop_reason, is_due))
        # a signal may reach any process; only the main one looks at the clock and asks callbacks, so that all do alike
        stopped_by = next((name for name, _, _ in wishes if name is not None), wishes[0][1])
        if stopped_by is not None or wishes[0][2]:
            save()
        if stopped_by is not None:
            raise Stopped(stopped_by)

    def _minutes(self) -> float:
        return (time.monotonic() - self._saved) / 60

    def _save(self, progress: EpochProgress) -> None:
        if not self._keeps_position:
            return
        progress.check()
        self._run.state.check_finite()
        self._run.state.unfinished = progress.state_dict()
        self._callbacks.epoch_paused()
        self._run.state.unfinished = None
        self._saved = time.monotonic()
