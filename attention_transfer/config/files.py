"""The run's own files: checkpoints, logs and figures."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from attention_transfer.config.group import Path, SettingsGroup, as_tuple

Tracker = Literal["wandb", "mlflow", "comet_ml", "clearml", "aim"]


class FileSettings(SettingsGroup):
    """The run's own files: checkpoints, logs and figures."""

    heading: ClassVar = "Files"

    print_freq: int = Field(100, ge=1, description="batches between two lines in the log")
    save_minutes: float = Field(
        10.0, gt=0, description="minutes between two saves of the last state, inside an epoch too"
    )
    save_freq: int = Field(10, ge=1, description="epochs between two numbered checkpoints")
    figure_freq: int = Field(5, ge=0, description="epochs between two attention figures in TensorBoard; 0 draws none")
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(as_tuple)] = Field(
        (), description="trackers that settings and figures are logged to; each needs its own package"
    )
    save_dir: Path = Field("checkpoints", description="folder of the checkpoints")
    log_dir: Path = Field("logs", description="folder of the log, the summary and the TensorBoard run")
    experiment_name: str | None = Field(None, description="name of the run's files; None makes a unique one")
    resume: Path | None = Field(
        None, description="a checkpoint to go on from; auto = this experiment's newest, or from the start"
    )
    overwrite: bool = Field(False, description="replace a finished run of the same name")

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("it names a tracker twice")
        return trackers

    @field_validator("experiment_name")
    @classmethod
    def _a_file_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[^/\\\0]*[^/\\\0. ][^/\\\0]*", name):
            raise ValueError("it names files, so it must not be empty or contain a slash")
        return name
