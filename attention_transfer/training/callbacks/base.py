"""Callbacks: the base class, and the list that calls them.

A callback of your own is a subclass, passed as `train_at(callbacks=[...])`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from attention_transfer.errors import ConfigError
from attention_transfer.training.checkpointing.paths import FAILED
from attention_transfer.training.checkpointing.state import EpochRecord
from attention_transfer.training.context import RunContext
from attention_transfer.training.metrics import MeanMeter

logger = logging.getLogger(__name__)


class Callback:
    """The base class of callbacks: its methods are called at the events of a run; override those that you need.

    Events are named after what has just happened. A callback may end the run with `run.stop(reason)`, and may have a
    state: what `state_dict` returns is saved in every checkpoint and passed to `load_state_dict` by a resumed run,
    before `run_started`. It must not draw from the global random generators.

    Attributes:
        every_process: called in every process of a run; False: in the main process alone. States are those of the main
            process, and every process restores them.
        batch_interval: `batch_trained` is called after every n-th batch of an epoch.
        saves: saves the others' states, and so is called after them when an epoch is paused or completed.

    Example:
        class StopAt(Callback):
            def epoch_completed(self, run, record, is_best):
                if record["val_accuracy"] >= 0.9:
                    run.stop("it is good enough")
    """

    every_process = False
    batch_interval = 1
    saves = False

    def run_started(self, run: RunContext) -> None:
        """The run has begun, or resumes from a checkpoint."""

    def epoch_started(self, run: RunContext, epoch: int) -> None:
        """Epoch `epoch` (from 1) has begun."""

    def batch_trained(self, run: RunContext, batch: int, meter: MeanMeter) -> None:
        """A batch was trained, the last of `batch_interval`.

        Args:
            run: the run.
            batch: its number in the epoch, from 0.
            meter: running sums of the epoch; reading it synchronises with the device.
        """

    def epoch_paused(self, run: RunContext) -> None:
        """The state of an unfinished epoch is to be saved."""

    def epoch_completed(self, run: RunContext, record: EpochRecord, is_best: bool) -> None:
        """An epoch was trained and validated, and is counted in `run.state`.

        Args:
            run: the run.
            record: the epoch's figures, as in the history.
            is_best: whether it is the best epoch so far.
        """

    def run_ended(self, run: RunContext, status: str) -> None:
        """The run is over: status is finished, stopped or failed."""

    def close(self) -> None:
        """Close files and handlers; also called after an error in `run_started`."""

    def state_dict(self) -> dict[str, Any]:
        """The state to save in a checkpoint: plain data and tensors; empty if there is none."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def by_name(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Callbacks by the name of their state in a checkpoint: the class name, numbered where it repeats.

    Raises:
        ConfigError: one of them is not a callback, or has a batch_interval below 1.
    """
    seen: Counter[str] = Counter()
    named: dict[str, Callback] = {}
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"callbacks has a {type(callback).__name__}; each must be an instance of a subclass of "
                "attention_transfer.Callback."
            )
        name = type(callback).__name__
        if callback.batch_interval < 1:
            raise ConfigError(f"{name}.batch_interval is {callback.batch_interval!r}; it must be at least 1.")
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name} {seen[name]}"] = callback
    return named


class CallbackList:
    """A list of callbacks, called in the main process alone unless `every_process` is set.

    After an error in `run_started`, a callback only gets `close`. Where one fails, the others are still called: a full
    disk of the logs costs no checkpoint. Then the first error is raised, unless the run has already failed.

    Args:
        callbacks: in the order in which they are called.
        run: passed to each.
    """

    def __init__(self, callbacks: Sequence[Callback], run: RunContext) -> None:
        is_main = run.runtime.is_main
        self._callbacks = [callback for callback in callbacks if is_main or callback.every_process]
        self._started: list[Callback] = []
        self._run = run
        self._has_failed = False

    def run_started(self) -> None:
        for callback in self._callbacks:
            callback.run_started(self._run)
            self._started.append(callback)

    def epoch_started(self, epoch: int) -> None:
        for callback in self._started:
            callback.epoch_started(self._run, epoch)

    def batch_trained(self, batch: int, meter: MeanMeter) -> None:
        for callback in self._started:
            if not (batch + 1) % callback.batch_interval:
                callback.batch_trained(self._run, batch, meter)

    def epoch_paused(self) -> None:
        self._call(self._saving_last(), lambda callback: callback.epoch_paused(self._run))

    def epoch_completed(self, record: EpochRecord, is_best: bool) -> None:
        self._call(self._saving_last(), lambda callback: callback.epoch_completed(self._run, record, is_best))

    def run_ended(self, status: str) -> None:
        self._has_failed = status == FAILED
        self._call(self._started, lambda callback: callback.run_ended(self._run, status))

    def close(self) -> None:
        # the log is the first: closed last, it still writes what the others log
        self._call([*reversed(self._callbacks)], lambda callback: callback.close())

    def _saving_last(self) -> list[Callback]:
        return sorted(self._started, key=lambda callback: callback.saves)

    def _call(self, callbacks: Sequence[Callback], event: Callable[[Callback], None]) -> None:
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
