"""The callback of the trackers: settings and the figures of each epoch, for as many as the setting names."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attention_transfer.errors import ConfigError
from attention_transfer.training.callbacks.base import Callback
from attention_transfer.training.callbacks.tracker_backends import BACKENDS, Backend
from attention_transfer.training.checkpointing.paths import FAILED, FINISHED
from attention_transfer.training.checkpointing.state import EpochRecord
from attention_transfer.training.context import RunContext

logger = logging.getLogger(__name__)


@dataclass
class _TrackedRun:
    """The run as a tracker has it.

    Attributes:
        backend: how the tracker is used.
        tracker: accelerate's.
        run_id: the tracker's name for the run.
        epochs: how many epochs of the history it has been sent.
    """

    backend: Backend
    tracker: Any
    run_id: str
    epochs: int = 0

    def send(self, history: list[EpochRecord]) -> None:
        """Send the epochs that it lacks; where that fails they are sent with the next one, and a warning says so."""
        try:
            while self.epochs < len(history):
                self.backend.log(self.tracker, history[self.epochs], self.epochs + 1)
                self.epochs += 1
        # half a dozen libraries raise what they like, and none of it is worth a trained epoch
        except Exception as error:
            logger.warning(
                "the tracker %s did not take epoch %d, which is sent again with the next: %s",
                self.backend.name, self.epochs + 1, _in_words(error),
            )  # fmt: skip

    def end(self, status: str, results: Mapping[str, float], epoch: int) -> None:
        """Send the results, if any, and end the tracker's run with its status."""
        try:
            try:
                if results:
                    self.backend.log(self.tracker, results, epoch)
            finally:
                self.backend.end(self.tracker, status)
        except Exception as error:
            logger.warning("the tracker %s could not end its run: %s", self.backend.name, _in_words(error))


class Trackers(Callback):
    """Logs the run to the trackers that the setting names, in the main process.

    A resumed run continues the runs of its trackers, and sends them the epochs that they lack; another run that starts
    from its checkpoint has runs of its own. A tracker that cannot be started is an error. One that fails later is
    warned of, and gets what it missed with the next epoch: a server that is away ends no training.
    """

    def __init__(self) -> None:
        self._runs: dict[str, _TrackedRun] = {}
        self._saved: dict[str, Any] = {}
        self._status, self._results, self._epoch = FAILED, dict[str, float](), 0

    def run_started(self, run: RunContext) -> None:
        if self._saved.get("experiment") != run.paths.name:
            self._saved = {"experiment": run.paths.name, "runs": {}}
        for name in run.config.trackers:
            self._runs[name] = _start(BACKENDS[name], run, self._saved["runs"].get(name))
            self._runs[name].send(run.state.history)

    def epoch_completed(self, run: RunContext, record: EpochRecord, is_best: bool) -> None:
        for each in self._runs.values():
            each.send(run.state.history)

    def run_ended(self, run: RunContext, status: str) -> None:
        self._status, self._epoch = status, run.state.epoch
        self._results = _results(run) if status == FINISHED else {}

    def close(self) -> None:
        runs, self._runs = self._runs, {}
        for each in runs.values():
            each.end(self._status, self._results, self._epoch)

    def state_dict(self) -> dict[str, Any]:
        """The id of each tracker's run, and how many epochs it has been sent; empty where there never was a tracker."""
        now = {name: {"run_id": each.run_id, "epochs": each.epochs} for name, each in self._runs.items()}
        runs = {**self._saved.get("runs", {}), **now}
        return {**self._saved, "runs": runs} if runs else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved = state


def _start(backend: Backend, run: RunContext, known: Mapping[str, Any] | None) -> _TrackedRun:
    """Start a tracker with a new run, or with the known one."""
    run_id = None if known is None else known["run_id"]
    try:
        tracker = backend.start(run.paths.name, run.config.log_dir, run_id)
    except Exception as error:
        raise ConfigError(
            f"trackers has {backend.name!r}, which cannot be started: {_in_words(error)}. See to it that its server "
            f"can be reached, or leave {backend.name} out."
        ) from error
    started = _TrackedRun(backend, tracker, "", 0 if known is None else known["epochs"])
    try:
        started.run_id = backend.run_id(tracker)
        if known is None or backend.updates_settings:
            settings = {key: value for key, value in run.config.model_dump().items() if value is not None}
            tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})
    except BaseException:
        started.end(FAILED, {}, 0)
        raise
    logger.info("the tracker %s %s run %s", backend.name, "begins" if known is None else "continues", started.run_id)
    return started


def _results(run: RunContext) -> dict[str, float]:
    tested = run.outcome.get("test_results") or {}
    figures = {
        "best_epoch": run.state.best_epoch,
        "best_accuracy": run.state.best_accuracy,
        "best_balanced_accuracy": run.state.best_balanced_accuracy,
        "test_accuracy": tested.get("accuracy"),
        "test_balanced_accuracy": tested.get("balanced_accuracy"),
    }
    return {name: float(value) for name, value in figures.items() if value is not None}


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _in_words(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
