"""The trackers that a run can be logged to, through accelerate: how each is started, continued and ended.

To add one of accelerate's, add a class here and a line in `BACKENDS`, and its name in the setting `trackers`.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from attention_transfer.errors import ConfigError
from attention_transfer.training.checkpointing.paths import FAILED, FINISHED, STOPPED

PROJECT = "attention-transfer"
"""The project, or experiment, in which a tracker puts its runs."""


class Backend(ABC):
    """A tracker of accelerate's; its package is imported when `start` is called.

    Attributes:
        name: as in the setting, and as accelerate calls it.
        package: to be installed.
        updates_settings: whether a run that goes on may store other settings than it began with.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    updates_settings: ClassVar[bool] = True

    @property
    def is_installed(self) -> bool:
        """Whether accelerate finds the package."""
        from accelerate import utils

        return bool(getattr(utils, f"is_{self.name}_available")())

    def start(self, run_name: str, folder: str, run_id: str | None) -> Any:
        """Start accelerate's tracker.

        Args:
            run_name: the name of the run.
            folder: for files of the tracker, where it has any.
            run_id: of the tracker's run to continue; None: a new one.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        arguments, options = self.arguments(run_name, folder, run_id)
        tracker = LOGGER_TYPE_TO_CLASS[self.name](*arguments, **options)
        # before accelerate 1.9 making it starts it
        getattr(tracker, "start", lambda: None)()
        return tracker

    @abstractmethod
    def arguments(self, run_name: str, folder: str, run_id: str | None) -> tuple[list[str], dict[str, Any]]:
        """The arguments of accelerate's class."""

    @abstractmethod
    def run_id(self, tracker: Any) -> str:
        """The tracker's name for its run, by which it is continued."""

    def log(self, tracker: Any, figures: Mapping[str, float], epoch: int) -> None:
        """Log the figures of an epoch (from 1)."""
        tracker.log(dict(figures), step=epoch)

    def end(self, tracker: Any, status: str) -> None:
        """End the tracker's run; status is finished, stopped or failed."""
        tracker.finish()


class WandB(Backend):
    name = package = "wandb"

    def arguments(self, run_name: str, folder: str, run_id: str | None) -> tuple[list[str], dict[str, Any]]:
        goes_on = {} if run_id is None else {"id": run_id, "resume": "allow"}
        return [os.environ.get("WANDB_PROJECT", PROJECT)], {"name": run_name, "dir": folder, **goes_on}

    def __init__(self) -> None:
        self._is_ours = False

    def start(self, run_name: str, folder: str, run_id: str | None) -> Any:
        self._is_ours |= self.package not in sys.modules
        tracker = super().start(run_name, folder, run_id)
        tracker.tracker.define_metric("*", step_metric="epoch")
        return tracker

    def run_id(self, tracker: Any) -> str:
        return str(tracker.tracker.id)

    def log(self, tracker: Any, figures: Mapping[str, float], epoch: int) -> None:
        # without its own step, which must not go back, as a run that is resumed from an earlier checkpoint does
        tracker.log({**figures, "epoch": epoch})

    def end(self, tracker: Any, status: str) -> None:
        import wandb

        tracker.tracker.finish(exit_code=int(status == FAILED))
        if self._is_ours and wandb.run is None:
            # its process and threads; where the user had imported it before, there may be other runs in them
            wandb.teardown()


class MLflow(Backend):
    name = package = "mlflow"
    updates_settings = False

    _STATUS: ClassVar = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED"}

    def arguments(self, run_name: str, folder: str, run_id: str | None) -> tuple[list[str], dict[str, Any]]:
        # nested: inside of a run that the user has begun
        return [PROJECT], {"run_name": run_name, "run_id": run_id, "nested_run": True}

    def run_id(self, tracker: Any) -> str:
        return str(tracker.tracker.info.run_id)

    def end(self, tracker: Any, status: str) -> None:
        import mlflow

        mlflow.end_run(self._STATUS[status])


class Comet(Backend):
    name = package = "comet_ml"

    def arguments(self, run_name: str, folder: str, run_id: str | None) -> tuple[list[str], dict[str, Any]]:
        goes_on = {} if run_id is None else {"experiment_key": run_id, "mode": "get"}
        return [os.environ.get("COMET_PROJECT_NAME", PROJECT)], goes_on

    def start(self, run_name: str, folder: str, run_id: str | None) -> Any:
        tracker = super().start(run_name, folder, run_id)
        tracker.tracker.set_name(run_name)
        return tracker

    def run_id(self, tracker: Any) -> str:
        return str(tracker.tracker.get_key())


class ClearML(Backend):
    name = package = "clearml"
    updates_settings = False

    def arguments(self, run_name: str, folder: str, run_id: str | None) -> tuple[list[str], dict[str, Any]]:
        options = {
            "task_name": run_name,
            # it would replace functions of torch and matplotlib, and standard output, for good
            "auto_connect_frameworks": False,
            "auto_connect_arg_parser": False,
            "auto_connect_streams": False,
            "reuse_last_task_id": run_id or False,
        }
        # 0: our steps are epochs, not counted from the last one
        return [PROJECT], options if run_id is None else {**options, "continue_last_task": 0}

    def run_id(self, tracker: Any) -> str:
        return str(tracker.tracker.id)


class Aim(Backend):
    name = package = "aim"

    def arguments(self, run_name: str, folder: str, run_id: str | None) -> tuple[list[str], dict[str, Any]]:
        # it would watch the machine in a thread, and replace standard output
        quiet = {"system_tracking_interval": None, "capture_terminal_logs": False}
        return [run_name, folder], {"experiment": PROJECT, "run_hash": run_id, **quiet}

    def run_id(self, tracker: Any) -> str:
        return str(tracker.tracker.hash)


BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (WandB(), MLflow(), Comet(), ClearML(), Aim())}


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse, before training, trackers whose package is missing.

    Raises:
        ConfigError: names the package.
    """
    for name in names:
        package = BACKENDS[name].package
        if not BACKENDS[name].is_installed:
            raise ConfigError(
                f"trackers has {name!r}, but the package {package} is not installed; pip install {package}, or leave "
                "it out."
            )
