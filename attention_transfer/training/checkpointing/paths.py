"""The paths of a run's files, and its name."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attention_transfer.config import Config
from attention_transfer.errors import ConfigError, WriteError
from attention_transfer.files import write_failure

logger = logging.getLogger(__name__)

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


class RunPaths:
    """The paths of a run's files.

    Args:
        config: uses save_dir, log_dir and experiment_name.
    """

    def __init__(self, config: Config) -> None:
        if config.experiment_name is None:
            raise ConfigError("the run has no experiment_name yet; name it with name_run(config).")
        self.name = config.experiment_name
        self._save_dir, self._log_dir = Path(config.save_dir), Path(config.log_dir)
        self.best = self._save_dir / f"{self.name}_best.pth"
        self.final = self._save_dir / f"{self.name}_final.pth"
        self.last = self._save_dir / f"{self.name}_last.pth"
        self.log = self._log_dir / f"{self.name}.log"
        self.summary = self._log_dir / f"{self.name}_summary.json"
        self.tensorboard = self._log_dir / self.name
        self.lock = self._save_dir / f".{self.name}.lock"
        self.log_lock = self._log_dir / f".{self.name}.lock"

    def numbered(self, epoch: int) -> Path:
        """The path of the checkpoint saved after `epoch` completed epochs."""
        return self._save_dir / f"{self.name}_epoch_{epoch}.pth"

    def checkpoints(self) -> list[Path]:
        """All checkpoints of this run that are on disk, numbered ones in order, then last, best, final."""
        prefix = f"{self.name}_epoch_"
        numbered = [
            path for path in self._save_dir.glob("*.pth") if path.name.startswith(prefix) and _number(path, prefix)
        ]
        numbered.sort(key=lambda path: _number(path, prefix))
        return [*numbered, *(path for path in (self.last, self.best, self.final) if path.exists())]

    def refuse_to_overwrite(self) -> None:
        """Refuse to overwrite checkpoints of an earlier run of this name.

        Raises:
            ConfigError: there are some; the message names the remedies.
        """
        checkpoints = self.checkpoints()
        if checkpoints:
            state = "has finished" if _read(self.summary).get("status") == FINISHED else "was not finished"
            last = self.last if self.last in checkpoints else checkpoints[-1]
            raise ConfigError(
                f"experiment_name is {self.name!r}, and a run of this name {state}; choose another name, go on from "
                f"it with resume={str(last)!r}, or replace it with overwrite=True."
            )

    def refuse_to_take_logs(self) -> None:
        """Refuse to overwrite log, summary and TensorBoard run of a run whose checkpoints are in another folder.

        Raises:
            ConfigError: there are some; the message names the remedies.
        """
        summary = _read(self.summary)
        there = Path(summary["config"]["save_dir"]) if summary else self._save_dir
        if summary.get("history") and there.absolute() != self._save_dir.absolute():
            raise ConfigError(
                f"experiment_name is {self.name!r}, and {self.summary} is of a run of this name with its checkpoints "
                f"in {there}, not in {self._save_dir}; set save_dir to that folder, choose another name or log_dir, or "
                "replace it with overwrite=True."
            )

    def clear(self, but: str = "") -> None:
        """Remove the files of an earlier run of this name, except `but`, the checkpoint that the new one starts from.

        Raises:
            WriteError: a file cannot be removed.
        """
        for path in self._files():
            if path != Path(but):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    setting = "save_dir" if path.suffix == ".pth" else "log_dir"
                    raise WriteError(write_failure(path, 0, error, setting)) from error

    def set_aside(self, paths: Iterable[Path] | None = None) -> None:
        """Rename files of an earlier run, by default all, so that no run mistakes them for its own."""
        for path in self._files() if paths is None else paths:
            if path.exists():
                aside = _aside(path)
                path.rename(aside)
                logger.info("%s is set aside as %s", path, aside.name)

    def _files(self) -> list[Path]:
        return [*self.checkpoints(), self.log, self.summary, *self.tensorboard.glob("events.out.tfevents.*")]


def _number(path: Path, prefix: str) -> int:
    digits = path.stem.removeprefix(prefix)
    return int(digits) if digits.isdecimal() else 0


def _aside(path: Path) -> Path:
    # TensorBoard reads whatever has 'tfevents' in its name
    name = path.name.replace("tfevents", "events")
    names = (path.with_name(f"{name}.aside-{number}") for number in itertools.count(1))
    return next(free for free in names if not free.exists())


def _read(summary: Path) -> dict[str, Any]:
    """A run's summary; empty if it is missing or cannot be read."""
    try:
        content = json.loads(summary.read_text())
        return content if isinstance(content["config"]["save_dir"], str) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def name_run(config: Config, network: str, *, has_teacher: bool) -> str:
    """A readable name that no run in these folders has, such as MultiBranchNet-at-20250131-142536.

    Args:
        config: uses save_dir and log_dir.
        network: the student's name.
        has_teacher: whether there is a teacher: -at- or -plain- in the name.
    """
    kind = "at" if has_teacher else "plain"
    base = f"{network}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [base, *(f"{base}-{i}" for i in range(2, 1000))]
    return next(name for name in names if not _is_taken(config, name))


def _is_taken(config: Config, name: str) -> bool:
    files = RunPaths(config.model_copy(update={"experiment_name": name}))
    return bool(
        files.lock.exists()
        or files.log.exists()
        or files.summary.exists()
        or files.tensorboard.exists()
        or files.checkpoints()
    )
