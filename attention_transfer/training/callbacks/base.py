"""What observers are told, and when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from attention_transfer.training.checkpointing.paths import FAILED
from attention_transfer.training.checkpointing.state import EpochRecord
from attention_transfer.training.context import RunContext
from attention_transfer.training.metrics import MeanMeter

logger = logging.getLogger(__name__)


class Callback:
    """Hears of a run's events; each method may be left out."""

    def start(self, run: RunContext) -> None:
        """The run begins, or goes on after a checkpoint."""

    def epoch_start(self, run: RunContext, epoch: int) -> None:
        """Epoch `epoch` (from 1) begins."""

    def batch(self, run: RunContext, batch: int, sums: MeanMeter) -> None:
        """Batch `batch` (from 0) of the epoch is done; reading `sums` waits for the device."""

    def pause(self, run: RunContext) -> None:
        """An epoch is not finished, and its state is to be saved."""

    def epoch(self, run: RunContext, record: EpochRecord, is_best: bool) -> None:
        """An epoch is done and validated; the state counts it already."""

    def end(self, run: RunContext, status: str) -> None:
        """The run is over: status is finished, stopped or failed."""

    def close(self) -> None:
        """Let go of files and handlers; called also after an error in `start`."""


class CallbackList:
    """Tells a list of observers, in the main process alone; those whose start failed hear nothing but close.

    Where one fails, the others hear of the event all the same: a full disk of the logs costs no checkpoint. The first
    error is raised then, unless one has ended the run already.
    """

    def __init__(self, callbacks: Sequence[Callback], run: RunContext) -> None:
        self._observers: Sequence[Callback] = callbacks if run.runtime.is_main else ()
        self._started: list[Callback] = []
        self._run = run
        self._has_failed = False

    def start(self) -> None:
        for callback in self._observers:
            callback.start(self._run)
            self._started.append(callback)

    def epoch_start(self, epoch: int) -> None:
        for callback in self._started:
            callback.epoch_start(self._run, epoch)

    def batch(self, batch: int, sums: MeanMeter) -> None:
        for callback in self._started:
            callback.batch(self._run, batch, sums)

    def pause(self) -> None:
        self._tell(self._started, lambda callback: callback.pause(self._run))

    def epoch(self, record: EpochRecord, is_best: bool) -> None:
        self._tell(self._started, lambda callback: callback.epoch(self._run, record, is_best))

    def end(self, status: str) -> None:
        self._has_failed = status == FAILED
        self._tell(self._started, lambda callback: callback.end(self._run, status))

    def close(self) -> None:
        # the log is the first, and is to hear of what the others have to say
        self._tell([*reversed(self._observers)], lambda callback: callback.close())

    def _tell(self, callbacks: Sequence[Callback], event: Callable[[Callback], None]) -> None:
        first: Exception | None = None
        for callback in callbacks:
            try:
                event(callback)
            except Exception as error:
                if first is None and not self._has_failed:
                    first = error
                else:
                    logger.error("%s", error)
        if first is not None:
            raise first
