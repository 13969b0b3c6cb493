"""What observers are told, and when."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from attention_transfer.config import Config
from attention_transfer.training.artefacts import FAILED, Artefacts
from attention_transfer.training.runtime import Runtime
from attention_transfer.training.state import EpochRecord, RunState
from attention_transfer.training.sums import Sums

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A run as its observers see it.

    Attributes:
        config: the resolved configuration.
        state: where the run is.
        artefacts: where files go.
        runtime: device, precision, processes.
        teacher: the teacher's network, or None.
        splits: number of images of each split, None where a loader does not tell.
        batches: batches an epoch, None before the first epoch of a loader that does not tell.
        validates: whether there is a validation loader.
        images: a fixed handful of validation (or training) images [B, 3, H, W], to draw attention on.
        said_before: what the library said before the run's log was open.
        outcome: filled at the end: test results, wall time, error.
    """

    config: Config
    state: RunState
    artefacts: Artefacts
    runtime: Runtime
    teacher: nn.Module | None
    splits: dict[str, int | None]
    batches: int | None
    validates: bool
    images: Tensor | None = None
    said_before: Iterable[logging.LogRecord] = ()
    outcome: dict[str, Any] = field(default_factory=dict)


class Observer:
    """Hears of a run's events; each method may be left out."""

    def start(self, run: Run) -> None:
        """The run begins, or goes on after a checkpoint."""

    def epoch_start(self, run: Run, epoch: int) -> None:
        """Epoch `epoch` (from 1) begins."""

    def batch(self, run: Run, batch: int, sums: Sums) -> None:
        """Batch `batch` (from 0) of the epoch is done; reading `sums` waits for the device."""

    def pause(self, run: Run) -> None:
        """An epoch is not finished, and its state is to be saved."""

    def epoch(self, run: Run, record: EpochRecord, is_best: bool) -> None:
        """An epoch is done and validated; the state counts it already."""

    def end(self, run: Run, status: str) -> None:
        """The run is over: status is finished, stopped or failed."""

    def close(self) -> None:
        """Let go of files and handlers; called also after an error in `start`."""


class Observers:
    """Tells a list of observers, in the main process alone; those whose start failed hear nothing but close.

    Where one fails, the others hear of the event all the same: a full disk of the logs costs no checkpoint. The first
    error is raised then, unless one has ended the run already.
    """

    def __init__(self, observers: Sequence[Observer], run: Run) -> None:
        self._observers: Sequence[Observer] = observers if run.runtime.is_main else ()
        self._started: list[Observer] = []
        self._run = run
        self._has_failed = False

    def start(self) -> None:
        for observer in self._observers:
            observer.start(self._run)
            self._started.append(observer)

    def epoch_start(self, epoch: int) -> None:
        for observer in self._started:
            observer.epoch_start(self._run, epoch)

    def batch(self, batch: int, sums: Sums) -> None:
        for observer in self._started:
            observer.batch(self._run, batch, sums)

    def pause(self) -> None:
        self._tell(self._started, lambda observer: observer.pause(self._run))

    def epoch(self, record: EpochRecord, is_best: bool) -> None:
        self._tell(self._started, lambda observer: observer.epoch(self._run, record, is_best))

    def end(self, status: str) -> None:
        self._has_failed = status == FAILED
        self._tell(self._started, lambda observer: observer.end(self._run, status))

    def close(self) -> None:
        # the log is the first, and is to hear of what the others have to say
        self._tell([*reversed(self._observers)], lambda observer: observer.close())

    def _tell(self, observers: Sequence[Observer], event: Callable[[Observer], None]) -> None:
        first: Exception | None = None
        for observer in observers:
            try:
                event(observer)
            except Exception as error:
                if first is None and not self._has_failed:
                    first = error
                else:
                    logger.error("%s", error)
        if first is not None:
            raise first
