"""Saving and stopping between two batches, in all processes alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from attention_transfer.training.callbacks.base import CallbackList
from attention_transfer.training.context import RunContext
from attention_transfer.training.epoch import STEPS_BETWEEN_CHECKS
from attention_transfer.training.epoch_progress import EpochProgress
from attention_transfer.training.signals import SignalHandler, Stopped


class AutoSave:
    """Saves an unfinished epoch every save_minutes and before a stop.

    One process decides after each batch; several decide every few batches, because the decision synchronises them.

    Args:
        run: the run to save; its stop_reason is set where a callback has ended it.
        callbacks: write the checkpoints.
        request: holds the signal that requests a stop, if any.
        keeps_position: whether the loader can start inside an epoch; if not, an unfinished epoch is not saved.
    """

    def __init__(
        self, run: RunContext, callbacks: CallbackList, request: SignalHandler, *, keeps_position: bool
    ) -> None:
        self._run = run
        self._callbacks = callbacks
        self._request = request
        self._keeps_position = keeps_position
        accumulate = run.config.accumulate
        self._interval = math.ceil(STEPS_BETWEEN_CHECKS / accumulate) * accumulate
        self._saved = time.monotonic()

    def after_batch(self, progress: EpochProgress) -> None:
        """Save and stop after a training batch, if it is due; not between batches of one step of the optimizer.

        Raises:
            Stopped: the run is saved as far as possible.
        """
        if progress.waiting:
            return
        # the whole epoch is about to be saved
        is_last = progress.batches == self._run.batches
        is_due = self._keeps_position and not is_last and self._minutes() >= self._run.config.save_minutes
        self._pause(progress.batches, is_due, lambda: self._save(progress), is_last=is_last)

    def after_validation_batch(self, batches: int, progress: EpochProgress) -> None:
        """Stop after a validation batch, if requested; the epoch is saved as trained and not yet validated.

        Raises:
            Stopped: the run is saved as far as possible.
        """
        self._pause(batches, False, lambda: self._save(progress))

    def after_epoch(self) -> None:
        """Stop after an epoch that was saved as a whole, if requested.

        Raises:
            Stopped: nothing is lost.
        """
        self._saved = time.monotonic()
        self._pause(0, False, lambda: None)

    def _pause(self, batches: int, is_due: bool, save: Callable[[], None], *, is_last: bool = False) -> None:
        runtime = self._run.runtime
        if runtime.world_size > 1 and batches % self._interval and not is_last:
            return
        signal = self._request.signal
        requests = runtime.all_gather_object((None if signal is None else signal.name, self._run.stop_reason, is_due))
        # a signal may reach any process; clock and callbacks count in the main one alone, so that all decide alike
        stopped_by = next((name for name, _, _ in requests if name is not None), requests[0][1])
        if stopped_by is not None or requests[0][2]:
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
        self._run.state.gather_random_states(self._run.runtime)
        self._callbacks.epoch_paused()
        self._run.runtime.wait_for_all()
        self._run.state.unfinished = None
        self._saved = time.monotonic()
