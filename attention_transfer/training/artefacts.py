"""The files of a run, and its name."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from attention_transfer.config import Config
from attention_transfer.errors import ConfigError

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


class Artefacts:
    """Where a run puts its files.

    Args:
        config: save_dir, log_dir and experiment_name are used.
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

    def numbered(self, epoch: int) -> Path:
        """The checkpoint kept after `epoch` completed epochs."""
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
        """Leave the checkpoints of an earlier run of this name alone.

        Raises:
            ConfigError: there are some; the message says how to go on.
        """
        checkpoints = self.checkpoints()
        if checkpoints:
            state = "has finished" if read_status(self.summary) == FINISHED else "was not finished"
            last = self.last if self.last in checkpoints else checkpoints[-1]
            raise ConfigError(
                f"experiment_name is {self.name!r}, and a run of this name {state}; choose another name, go on from "
                f"it with resume={str(last)!r}, or replace it with overwrite=True."
            )

    def clear(self) -> None:
        """Remove what an earlier run of this name left."""
        events = self.tensorboard.glob("events.out.tfevents.*")
        for path in [*self.checkpoints(), self.log, self.summary, *events]:
            path.unlink(missing_ok=True)


def _number(path: Path, prefix: str) -> int:
    digits = path.stem.removeprefix(prefix)
    return int(digits) if digits.isdigit() else 0


def read_status(summary: Path) -> str | None:
    """The status in a run's summary; None where there is none that can be read."""
    try:
        content: dict[str, Any] = json.loads(summary.read_text())
    except (OSError, ValueError):
        return None
    status = content.get("status")
    return status if isinstance(status, str) else None


def name_run(config: Config, network: str, *, has_teacher: bool) -> str:
    """A readable name that no other run in these folders has, such as MultiBranchNet-at-20250131-142536."""
    kind = "at" if has_teacher else "plain"
    base = f"{network}-{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [base, *(f"{base}-{i}" for i in range(2, 1000))]
    return next(name for name in names if not _is_taken(config, name))


def _is_taken(config: Config, name: str) -> bool:
    files = Artefacts(config.model_copy(update={"experiment_name": name}))
    return bool(
        files.lock.exists()
        or files.log.exists()
        or files.summary.exists()
        or files.tensorboard.exists()
        or files.checkpoints()
    )
