"""The rules of going on from a checkpoint; docs/reliability.md tells them to people."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.config import Config, resolve_config
from attention_transfer.errors import CheckpointError, ConfigError, TeacherError
from attention_transfer.training.artefacts import Artefacts
from attention_transfer.training.runtime import Runtime

logger = logging.getLogger(__name__)

AUTO = "auto"
MAY_CHANGE = frozenset(
    {
        "epochs", "device", "num_workers", "data_dir", "experiment_name", "print_freq", "save_freq", "save_minutes",
        "figure_freq", "save_dir", "log_dir", "resume", "overwrite", "teacher_model", "teacher_arch", "pixel_cache",
        "teacher_cache", "cache_dir", "cache_limit", "hash_files", "compile",
    }
)  # fmt: skip
"""Keys that may differ from the checkpoint's; the teacher and the data are compared by what they are."""


@dataclass(frozen=True)
class Origin:
    """What a run goes on from.

    Attributes:
        config: the resolved settings of the run.
        checkpoint: what the file holds; None for a run from the start.
        source: its path.
    """

    config: Config
    checkpoint: dict[str, Any] | None = None
    source: str = ""

    def goes_on(self, config: Config) -> bool:
        """Whether it is the same run that goes on, rather than another one that starts from there."""
        if self.checkpoint is None:
            return False
        name: str = self.checkpoint["config"]["experiment_name"]
        return name == config.experiment_name

    def say_what_changed(self, runtime: Runtime) -> None:
        """Log what makes the rest of the run another one in its last bits."""
        assert self.checkpoint is not None
        then = self.checkpoint["training"]["made_with"]
        now = {"torch": str(torch.__version__), "processes": runtime.world_size}
        changes = [f"{key} is {now[key]} and was {then[key]}" for key in now if then[key] != now[key]]
        if changes:
            logger.info(
                "%s: the run goes on, but not bit for bit as it would have (%s)", self.source, ", ".join(changes)
            )


def find_origin(config: Config, runtime: Runtime) -> Origin:
    """The checkpoint that the settings name, or that resume='auto' finds, and the settings that come of it.

    Every process must call this together.

    Raises:
        CheckpointError: the file that resume names is damaged or missing.
        ConfigError: a setting contradicts the checkpoint and may not change; or resume is 'auto' and there is no
            experiment_name to look for.
    """
    source = config.resume
    if source == AUTO:
        if config.experiment_name is None:
            raise ConfigError("resume is 'auto', but experiment_name is None: name the experiment that is to go on.")
        source = runtime.from_main(newest_checkpoint(config) if runtime.is_main else None)
    if source is None:
        return Origin(config.model_copy(update={"resume": None}))
    checkpoint = read_checkpoint(source)
    return Origin(resumed_config(config, checkpoint, source), checkpoint, source)


def newest_checkpoint(config: Config) -> str | None:
    """The checkpoint of this experiment that is furthest in training, whatever the clock says; None if none verifies.

    What is skipped is logged with the reason.
    """
    found: list[tuple[int, Path]] = []
    for path in Artefacts(config).checkpoints():
        try:
            training = read_checkpoint(path)["training"]
        except CheckpointError as error:
            logger.warning("resume='auto' skips %s: %s", path.name, error)
            continue
        if training is not None:
            found.append((training["step"], path))
    if not found:
        logger.info("resume='auto' finds no checkpoint of %s: the run begins", config.experiment_name)
        return None
    step, path = max(found, key=lambda pair: pair[0])
    logger.info("resume='auto' goes on from %s, after %d batches", path, step)
    return str(path)


def resumed_config(config: Config, checkpoint: dict[str, Any], source: str) -> Config:
    """The configuration of a resumed run: the checkpoint's fills every key that is left at its default.

    Raises:
        ConfigError: a key contradicts the checkpoint and may not change; names the key and both values.
    """
    saved = resolve_config(checkpoint["config"])
    default = Config()
    merged: dict[str, Any] = {}
    for key in Config.model_fields:
        here, there = getattr(config, key), getattr(saved, key)
        is_given = here != getattr(default, key)
        if is_given and here != there and key not in MAY_CHANGE:
            raise ConfigError(
                f"{key} is {here!r}, but {source} was trained with {there!r}; leave {key} out to go on with "
                f"{there!r}, or start a new run."
            )
        merged[key] = here if is_given else there
    # where a run goes on is another machine's matter, and 'auto' a choice like any other
    merged["device"], merged["resume"], merged["overwrite"] = config.device, source, config.overwrite
    return Config(**merged)


def refuse_another_teacher(here: str | None, origin: Origin) -> None:
    """A run goes on with the teacher that it had.

    Raises:
        TeacherError: the hash of the teacher's weights is another one.
    """
    if origin.checkpoint is None or origin.checkpoint["training"] is None:
        return
    there = origin.checkpoint["training"]["teacher_digest"]
    if here != there:
        raise TeacherError(
            f"{origin.source} was trained with {_teacher(there)}, but this run has {_teacher(here)}; hand over the "
            "same teacher, or start a new run."
        )


def refuse_other_data(here: str | None, origin: Origin, config: Config) -> None:
    """A run goes on with the training images that it had, by their names and sizes; another run may have others.

    Raises:
        ConfigError: they are others.
    """
    if origin.checkpoint is None or origin.checkpoint["training"] is None:
        return
    there = origin.checkpoint["training"]["data_digest"]
    if here == there:
        return
    if origin.goes_on(config):
        raise ConfigError(
            f"{origin.source} was trained on other images than {config.data_dir!r} holds now (their names or sizes "
            "differ); bring them back, or start a run of another experiment_name from there."
        )
    logger.info("%s was trained on other images; this run goes on with new ones", origin.source)


def _teacher(digest: str | None) -> str:
    return "no teacher" if digest is None else f"a teacher whose weights have the hash {digest[:12]}"
