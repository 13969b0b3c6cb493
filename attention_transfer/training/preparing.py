"""Everything that is settled before the first epoch: data, networks, names, what is gone on from, who teaches."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from attention_transfer.cache.folder import cache_folder
from attention_transfer.checkpoint import weights_digest
from attention_transfer.config import Config
from attention_transfer.errors import ConfigError
from attention_transfer.networks.registry import network_name
from attention_transfer.training.artefacts import Artefacts, name_run
from attention_transfer.training.lock import RunLock
from attention_transfer.training.observers import Run
from attention_transfer.training.precision import batch_shape, choose_precision
from attention_transfer.training.resume import (
    AUTO,
    Origin,
    checkpoints_beyond,
    find_origin,
    refuse_another_teacher,
    refuse_other_data,
    refuse_to_go_back,
)
from attention_transfer.training.room import check_room, checkpoint_bytes, warn_of_little_room
from attention_transfer.training.runtime import AcceleratedRuntime
from attention_transfer.training.setup import (
    Loader,
    Loaders,
    batches_of,
    data_digest_of,
    has_position,
    images_to_draw,
    keep_pixels_of,
    open_loaders,
    open_student,
    open_teacher,
    prefer_channels_last,
    together,
    with_classes,
)
from attention_transfer.training.state import RunState, seed_everything
from attention_transfer.training.teaching import Teaching, open_teaching, with_teacher_precision

logger = logging.getLogger(__name__)

Brought = tuple[Loader | None, Loader | None, Loader | None]


@dataclass
class Prepared:
    """A run that can begin."""

    run: Run
    loaders: Loaders
    teaching: Teaching
    cleanup: ExitStack

    def close(self) -> None:
        """End the workers, and let others have the run's name."""
        self.cleanup.close()


def prepare(
    config: Config,
    runtime: AcceleratedRuntime,
    brought: Brought,
    student: nn.Module | None,
    teacher: nn.Module | None,
    said: Iterable[logging.LogRecord],
) -> Prepared:
    """Check all that can be checked, cheapest first, then keep pixels, choose number formats and open memories.

    Raises:
        ConfigError, DataError, TeacherError, CheckpointError, CacheError: with the value at fault.
    """
    with ExitStack() as cleanup:
        is_auto = config.resume == AUTO
        if is_auto:
            # before it looks around: what is found must not be a living run's
            _take_name(config, runtime, cleanup)
        origin = find_origin(config, runtime)
        config = origin.config
        seed_everything(config.seed)
        loaders = open_loaders(config, runtime, *brought)
        cleanup.callback(loaders.close)
        config = with_classes(config, loaders)
        teacher = open_teacher(config, teacher, runtime)
        seed_everything(config.seed)
        student = open_student(config, student).to(runtime.device)
        prefer_channels_last(runtime, student, teacher)
        config = _named(config, runtime, student, has_teacher=teacher is not None)
        artefacts = Artefacts(config)
        size = checkpoint_bytes(student)
        together(runtime, lambda: check_room(config.save_dir, config.log_dir, size) if runtime.is_main else None)
        if runtime.is_main:
            warn_of_little_room(artefacts, range(config.save_freq, config.epochs + 1, config.save_freq), size)
        if not is_auto:
            _take_name(config, runtime, cleanup)
        if not origin.goes_on(config) and not config.overwrite:
            artefacts.refuse_to_take_logs()
            if not is_auto:
                artefacts.refuse_to_overwrite()
        teacher_digest = None if teacher is None else weights_digest(teacher)
        data_digest = data_digest_of(loaders.train)
        refuse_another_teacher(teacher_digest, origin)
        refuse_other_data(data_digest, origin, config)

        keep_pixels_of(loaders, config, runtime)
        images = images_to_draw(loaders.val)
        config = _in_precision(config, runtime, student, teacher, loaders, images)
        teaching = open_teaching(config, teacher, loaders.train, loaders.val, runtime)
        state = RunState.start(config, student, teacher_digest, data_digest)
        _begin(origin, state, artefacts, runtime, loaders)
        run = Run(
            config=config,
            state=state,
            artefacts=artefacts,
            runtime=runtime,
            teacher=teacher,
            splits=loaders.splits(),
            batches=batches_of(loaders.train),
            validates=loaders.val is not None,
            images=images,
            said_before=said,
        )
        return Prepared(run, loaders, teaching, cleanup.pop_all())


def _take_name(config: Config, runtime: AcceleratedRuntime, cleanup: ExitStack) -> None:
    """Keep other runs from this one's name, in the folder of its checkpoints and in that of its logs."""
    if config.experiment_name is None:
        raise ConfigError("resume is 'auto', but experiment_name is None: name the experiment that is to go on.")
    files = Artefacts(config)
    locks = {files.lock.absolute(): "save_dir"}
    locks.setdefault(files.log_lock.absolute(), "log_dir")
    for path, setting in locks.items():
        take = partial(RunLock, path, files.name, setting=setting, held=runtime.is_main)
        cleanup.callback(together(runtime, take).release)


def _named(config: Config, runtime: AcceleratedRuntime, student: nn.Module, *, has_teacher: bool) -> Config:
    name = config.experiment_name or name_run(config, network_name(student), has_teacher=has_teacher)
    return config.model_copy(update={"experiment_name": runtime.from_main(name)})


def _in_precision(
    config: Config,
    runtime: AcceleratedRuntime,
    student: nn.Module,
    teacher: nn.Module | None,
    loaders: Loaders,
    images: Tensor | None,
) -> Config:
    """The configuration with the number formats that 'auto' comes to; the runtime computes in the student's."""
    shape = batch_shape(config, loaders.train, images, runtime.world_size)
    batches = batches_of(loaders.train)
    steps = None if batches is None else batches * config.epochs
    precision = choose_precision(config, runtime, student, teacher, shape, steps, cache_folder(config.cache_dir))
    runtime.use_precision(precision)
    config = config.model_copy(update={"precision": precision})
    return config if teacher is None else with_teacher_precision(config, runtime, teacher, shape)


def _begin(
    origin: Origin, state: RunState, artefacts: Artefacts, runtime: AcceleratedRuntime, loaders: Loaders
) -> None:
    """Become the state of the checkpoint that the run goes on from, and clear away what a run of its name left."""
    checkpoint: dict[str, Any] | None = origin.checkpoint
    if checkpoint is not None:
        data_digest = state.data_digest
        state.restore(checkpoint, origin.source, runtime)
        origin.say_what_changed(runtime)
        is_same_data = data_digest == checkpoint["training"]["data_digest"]
        if state.unfinished is not None and not (is_same_data and has_position(loaders.train, runtime)):
            logger.info("%s is inside an epoch of other images: that epoch begins anew", origin.source)
            state.unfinished = None
        refuse_to_go_back(state, origin)
    if runtime.is_main:
        _clear_away(origin, state, artefacts)


def _clear_away(origin: Origin, state: RunState, artefacts: Artefacts) -> None:
    if origin.goes_on(state.config):
        artefacts.set_aside(checkpoints_beyond(state.epoch, state.step, artefacts))
        return
    if not state.config.overwrite and artefacts.checkpoints():
        # resume='auto' could read none of them; perhaps somebody else can
        artefacts.set_aside()
    artefacts.clear(but=origin.source)
