"""The rules of resuming from a checkpoint; docs/reliability.md lists them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.class_names import Classes, in_words, match
from attention_transfer.config import Config, resolve_config
from attention_transfer.distributed import Runtime
from attention_transfer.errors import CheckpointError, ConfigError, DataError, VersionError
from attention_transfer.training.checkpointing.paths import RunPaths
from attention_transfer.training.checkpointing.state import (
    COMPARED,
    NO_IMAGES,
    OF_ONE_RUN,
    TEACHERS_IMAGES,
    UNLABELLED_IMAGES,
    RunState,
)
from attention_transfer.training.optim.schedules import SMOOTH

logger = logging.getLogger(__name__)

AUTO = "auto"
OF_TEACHERS_IMAGES = ("teacher_mean", "teacher_std", "teacher_image_size")
MAY_CHANGE = frozenset(
    {
        "epochs", "early_stopping", "device", "num_workers", "data_dir", "experiment_name", "print_freq", "save_freq",
        "save_minutes", "figure_freq", "save_dir", "log_dir", "resume", "overwrite", "teacher_model", "teacher_arch",
        "teacher_key", *OF_TEACHERS_IMAGES, "init_from", "trackers", "unlabelled_dir",
        "pixel_cache", "teacher_cache", "cache_dir", "cache_limit", "hash_files", "compile",
    }
)  # fmt: skip
"""Settings that may differ from the checkpoint's, but `epochs` only where no rate of the schedule depends on it; the
teacher, what it sees of the images, and the data are compared by their content."""


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run resumes from, and the resulting settings.

    Attributes:
        config: the resolved settings of the run.
        checkpoint: the content of the file; None for a run from the start.
        source: its path.
        is_found: whether resume='auto' has found it among the run's own files, whatever its former name.
    """

    config: Config
    checkpoint: dict[str, Any] | None = None
    source: str = ""
    is_found: bool = False

    def goes_on(self, config: Config) -> bool:
        """Whether the same run resumes, rather than another one that starts from its checkpoint."""
        if self.checkpoint is None:
            return False
        return self.is_found or self.checkpoint["config"].get("experiment_name") == config.experiment_name

    def log_changes(self, runtime: Runtime) -> None:
        """Log changes that make the resumed run differ from an uninterrupted one in its last bits."""
        assert self.checkpoint is not None
        then = self.checkpoint["training"]["made_with"]
        now = {"torch": str(torch.__version__), "processes": runtime.world_size}
        changes = [f"{key} is {now[key]} and was {then[key]}" for key in now if then[key] != now[key]]
        if changes:
            logger.info(
                "%s: the run goes on, but not bit for bit as it would have (%s)", self.source, ", ".join(changes)
            )


def find_resume_point(config: Config, runtime: Runtime) -> ResumePoint:
    """The checkpoint that the settings name, or that resume='auto' finds, and the resulting settings.

    All processes must call this.

    Raises:
        CheckpointError: the file that resume names is corrupt or missing; or what resume='auto' finds was written by
            another version, or could not be read at all.
        ConfigError: a setting contradicts the checkpoint and may not change.
    """
    source, is_auto = config.resume, config.resume == AUTO
    if is_auto:
        source = runtime.broadcast_object(newest_checkpoint(config) if runtime.is_main else None)
    if source is None:
        return ResumePoint(config.model_copy(update={"resume": None}))
    checkpoint = read_checkpoint(source)
    return ResumePoint(resumed_config(config, checkpoint, source), checkpoint, source, is_found=is_auto)


def newest_checkpoint(config: Config) -> str | None:
    """The checkpoint of this experiment with the most batches trained, whatever its date; None if none is intact.

    Skipped checkpoints are logged with the reason.

    Raises:
        VersionError: a checkpoint was written by another version of the library.
        CheckpointError: none is usable, and one could not be read from the disk, which may recover later.
    """
    found: list[tuple[int, Path]] = []
    unread: CheckpointError | None = None
    for path in RunPaths(config).checkpoints():
        try:
            content = read_checkpoint(path)
            saved_config(content, path)
        except VersionError:
            raise
        except CheckpointError as error:
            logger.warning("resume='auto' skips %s: %s", path.name, error)
            unread = error if isinstance(error.__cause__, OSError) else unread
            continue
        if content["training"] is not None:
            found.append((content["training"]["step"], path))
    if not found and unread is not None:
        raise unread
    if not found:
        logger.info("resume='auto' finds no checkpoint of %s: the run begins", config.experiment_name)
        return None
    step, path = max(found, key=lambda pair: pair[0])
    logger.info("resume='auto' goes on from %s, after %d batches", path, step)
    return str(path)


def resumed_config(config: Config, checkpoint: dict[str, Any], source: str) -> Config:
    """The configuration of a resumed run: the checkpoint's settings fill those that were left out.

    Args:
        config: the settings as given.
        checkpoint: its content.
        source: its path.

    Raises:
        ConfigError: a setting contradicts the checkpoint and may not change; names it and both values.
        CheckpointError: the checkpoint's settings are not valid in this version.
    """
    saved, given = saved_config(checkpoint, source), _given(config)
    bound = {"epochs"} if saved.schedule in SMOOTH else set()
    if TEACHERS_IMAGES not in (checkpoint["training"] or {}).get("recipe", {}):
        bound |= {*OF_TEACHERS_IMAGES}  # there is nothing to compare the outcome with
    merged: dict[str, Any] = {}
    for key in Config.model_fields:
        here, there = getattr(config, key), getattr(saved, key)
        is_given = key in given
        is_bound = key not in MAY_CHANGE or key in bound
        if is_given and here != there and is_bound:
            raise ConfigError(
                f"{key} is {here!r}, but {source} was trained with {there!r}; leave {key} out to go on with "
                f"{there!r}, or start a new run."
            )
        merged[key] = here if is_given else there
    # a run may resume on another machine, and device='auto' is a choice like any other
    merged["device"], merged["resume"], merged["overwrite"] = config.device, source, config.overwrite
    if config.resume == AUTO:
        # the folders searched; a copied checkpoint still names the folders that it was copied from
        merged["save_dir"], merged["log_dir"] = config.save_dir, config.log_dir
    taken = {key: merged[key] for key in config.model_fields_set - given if merged[key] != getattr(config, key)}
    if taken:
        values = ", ".join(f"{key}={value!r}" for key, value in sorted(taken.items()))
        logger.info("settings that are at their defaults here are taken from %s: %s", source, values)
    return Config(**merged)


def _given(config: Config) -> set[str]:
    """The settings that were chosen: in a complete dict of `create_at_config`, those that differ from the default."""
    given = set(config.model_fields_set)
    if given < set(Config.model_fields):
        return given
    default = Config()
    return {key for key in given if getattr(config, key) != getattr(default, key)}


def saved_config(checkpoint: dict[str, Any], source: str | os.PathLike[str]) -> Config:
    """The settings that a checkpoint was trained with.

    Raises:
        CheckpointError: they are not valid in this version.
    """
    try:
        return resolve_config(checkpoint["config"])
    except ConfigError as error:
        raise CheckpointError(f"{source} is malformed, or of another version of attention-transfer: {error}") from error


def checkpoints_beyond(epoch: int, step: int, paths: RunPaths) -> list[Path]:
    """The checkpoints of a run that are further than the one it resumes from, and so no longer part of it.

    Args:
        epoch: completed epochs at the resumed checkpoint.
        step: completed batches there.
        paths: of the run's files.
    """
    beyond = []
    for path in paths.checkpoints():
        try:
            content = read_checkpoint(path)
        except CheckpointError:
            continue  # it cannot be resumed, and the run will replace it
        training = content["training"]
        if content["epoch"] > epoch or (training is not None and training["step"] > step):
            beyond.append(path)
    return beyond


def refuse_to_go_back(state: RunState, point: ResumePoint) -> None:
    """Refuse to resume a run beyond its last epoch.

    Raises:
        ConfigError: `epochs` is less than what is already trained.
    """
    least = state.epoch + (state.unfinished is not None)
    if state.config.epochs < least:
        raise ConfigError(
            f"epochs is {state.config.epochs}, but {point.source} is {'inside' if state.unfinished else 'after'} "
            f"epoch {least}; set epochs to {least} or more, or resume from an earlier checkpoint."
        )


def refuse_another_loss(weights: Mapping[str, float], point: ResumePoint, config: Config) -> None:
    """Refuse to resume a run with another loss; another run that starts from its checkpoint may have another.

    Args:
        weights: of this run's terms, by name.
        point: what is resumed.
        config: the resolved settings.

    Raises:
        ConfigError: the terms or their weights differ.
    """
    if point.checkpoint is None or point.checkpoint["training"] is None or not point.goes_on(config):
        return
    there = point.checkpoint["training"].get("loss")  # version 0.1 knew KD and AT alone, whose weights are settings
    if there is not None and there != dict(weights):
        raise ConfigError(
            f"{point.source} was trained with the loss terms {_in_words(there)}, but this run has "
            f"{_in_words(weights)}; pass the same terms, or start a new run."
        )


def refuse_another_recipe(recipe: Mapping[str, str], point: ResumePoint, config: Config) -> None:
    """Refuse the state of an optimizer or scheduler of another class, and to go on with another map function.

    Args:
        recipe: of this run, as in `RunState`.
        point: what is resumed.
        config: the resolved settings.

    Raises:
        ConfigError: names both.
    """
    training = None if point.checkpoint is None else point.checkpoint["training"]
    then = {} if training is None else {UNLABELLED_IMAGES: NO_IMAGES, **training.get("recipe", {})}
    for name, there in then.items():
        if name == TEACHERS_IMAGES:
            continue  # see refuse_another_teacher
        here = recipe.get(name)
        if here is None and name in COMPARED:
            continue  # without a teacher nothing is compared, which is refused for itself
        if here != there and (name not in OF_ONE_RUN or point.goes_on(config)):
            raise ConfigError(
                f"{point.source} was trained with the {name} {there}, but this run has {here}; pass the same to "
                "train_at, or start a new run."
            )


def _in_words(weights: Mapping[str, float]) -> str:
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items()) or "(none)"


def refuse_other_data(here: str | None, point: ResumePoint, config: Config) -> None:
    """Refuse to resume a run with other training images, by names and sizes; another run may have others.

    Args:
        here: hash of this run's training images; None for a loader of the user's.
        point: what is resumed.
        config: the resolved settings.

    Raises:
        ConfigError: the images differ.
    """
    if point.checkpoint is None or point.checkpoint["training"] is None:
        return
    there = point.checkpoint["training"]["data_digest"]
    if here == there:
        return
    if point.goes_on(config) and (here is None or there is None):
        then, now = ("a loader of yours", "data_dir") if there is None else ("a data_dir", "a loader of yours")
        raise ConfigError(
            f"{point.source} was trained on images of {then}, and this run has those of {now}: whether they are the "
            "same is unknown; restore the earlier data, or start a run of another experiment_name from there."
        )
    if point.goes_on(config):
        raise ConfigError(
            f"{point.source} was trained on other images than {config.data_dir!r} holds now (their names or sizes "
            "differ); restore them, or start a run of another experiment_name from there."
        )
    logger.info("%s was trained on other images; this run continues with new ones", point.source)


def resumed_classes(here: tuple[str, ...] | None, point: ResumePoint, config: Config) -> Config:
    """The configuration of a resumed run, with the class names of its data checked against the checkpoint.

    The same run must have the same classes in the same order. Another run that starts from the checkpoint matches
    classes by name; where the data have other names, its outputs get these.

    Args:
        here: class names of the training data; None if they have none.
        point: what is resumed.
        config: the settings, in which class_names and num_classes may come from the checkpoint.

    Raises:
        ConfigError: the classes differ, and it is the same run or their number differs; the message has both lists.
    """
    if point.checkpoint is None or point.checkpoint["training"] is None or here is None:
        return config
    if point.goes_on(config):
        there = point.checkpoint["training"].get("data_classes", config.class_names)
        if there is not None and list(there) != list(here):
            raise ConfigError(
                f"{point.source} was trained on data with the classes {in_words(there)}, and this run's data have "
                f"{in_words(here)}; restore the earlier data, or start a run of another experiment_name from there."
            )
        return config
    student = Classes(f"the network of {point.source}", config.class_names, config.num_classes)
    try:
        found = match(student, Classes("the data set", here))
    except DataError as error:
        if config.num_classes != len(here):
            raise ConfigError(f"{error}; use data of these classes, or train a new network.") from None
        logger.info("%s: its outputs are trained for the data's classes, in their order", error)
        return config.model_copy(update={"class_names": here})
    if student.names is None:
        logger.info("%s", found.note)
    return config
