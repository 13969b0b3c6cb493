"""Preparation of a run before its first epoch: data, networks, names, the checkpoint to resume from, caches."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from attention_transfer.cache.folder import cache_folder
from attention_transfer.checkpoint import weights_digest
from attention_transfer.config import Config
from attention_transfer.data.loading.loaders import own_sampler
from attention_transfer.distributed import AcceleratedRuntime, all_or_raise
from attention_transfer.losses.configured import chosen_map_function
from attention_transfer.losses.term import LossTerm
from attention_transfer.losses.total import default_terms, needs_of_teacher
from attention_transfer.seeding import seed_everything
from attention_transfer.teacher.build import Teachers, build_teachers
from attention_transfer.training.callbacks import default_callbacks
from attention_transfer.training.callbacks.base import Callback, by_name
from attention_transfer.training.callbacks.tracker_backends import check_trackers
from attention_transfer.training.checkpointing.disk_space import (
    check_disk_space,
    checkpoint_bytes,
    warn_of_little_disk_space,
)
from attention_transfer.training.checkpointing.paths import RunPaths
from attention_transfer.training.checkpointing.resume import (
    AUTO,
    ResumePoint,
    checkpoints_beyond,
    find_resume_point,
    refuse_another_loss,
    refuse_another_recipe,
    refuse_other_data,
    refuse_to_go_back,
)
from attention_transfer.training.checkpointing.resumed_teacher import refuse_another_teacher, teacher_recipe
from attention_transfer.training.checkpointing.state import (
    MAP_FUNCTION,
    UNLABELLED_IMAGES,
    RunState,
    Stateful,
    check_states,
)
from attention_transfer.training.context import RunContext
from attention_transfer.training.criterion.student_gradient import check_gradient_terms
from attention_transfer.training.optim import make_optimizer, make_scheduler, parameter_groups
from attention_transfer.training.optim.ema import EmaWeights
from attention_transfer.training.optim.optimizers import optimizer_in_words, state_size
from attention_transfer.training.optim.recipe import check_recipe
from attention_transfer.training.precision.choose import batch_shape, choose_precision, with_teacher_precision
from attention_transfer.training.setup.checking import check_trainable
from attention_transfer.training.setup.comparison import compared_stages
from attention_transfer.training.setup.data.loaders import (
    Loaders,
    batches_of,
    cache_pixels_of,
    data_digests,
)
from attention_transfer.training.setup.data.opened import check_images, describe_data, images_of, open_data
from attention_transfer.training.setup.idle_settings import log_stretched_schedules
from attention_transfer.training.setup.naming import take_name, with_name
from attention_transfer.training.setup.networks import (
    open_student,
    open_teacher,
    prefer_channels_last,
    with_named_student,
)
from attention_transfer.training.setup.schedule import warn_of_fading
from attention_transfer.training.setup.start.class_weights import choose_class_weights
from attention_transfer.training.setup.start.freezing import freeze, warn_of_useless_freezing
from attention_transfer.training.setup.terms import build_terms, check_are_terms, check_terms
from attention_transfer.training.setup.user_parts import UserParts

logger = logging.getLogger(__name__)


@dataclass
class PreparedRun:
    """A run that is ready to begin."""

    run: RunContext
    loaders: Loaders
    teachers: Teachers
    terms: list[LossTerm]
    callbacks: list[Callback]


def prepare(
    config: Config,
    runtime: AcceleratedRuntime,
    parts: UserParts,
    captured_logs: Iterable[logging.LogRecord],
    cleanup: ExitStack,
) -> PreparedRun:
    """Check everything, cheapest first, then cache pixels, choose number formats and open the teacher's caches.

    Args:
        config: as given.
        runtime: gives device and processes.
        parts: the user's own loaders, networks, terms and callbacks.
        captured_logs: records logged so far, for the log file that is still to be opened.
        cleanup: closes everything opened here, also after an error: files, workers, and the lock on the run's name.

    Raises:
        ConfigError, DataError, TeacherError, CheckpointError, CacheError: with the value at fault.
    """
    config = with_named_student(config)
    is_auto = config.resume == AUTO
    if is_auto:
        # before the search: the checkpoint found must not be a living run's
        take_name(config, runtime, cleanup)
    point = _resume_point(config, runtime, parts)
    config = point.config
    seed_everything(config.seed)
    config, loaders, first, counts, data_classes = open_data(config, runtime, parts, point, cleanup)
    if runtime.is_main:
        describe_data(config, loaders, counts, parts)
    class_weights = choose_class_weights(config, counts, point)
    check_are_terms(parts.terms)
    distils = config.alpha > 0 or needs_of_teacher(parts.terms).logits
    teacher = open_teacher(config, parts.teacher, runtime, distils=distils)
    seed_everything(config.seed)
    student = _open_student(config, parts, point).to(runtime.device)
    frozen = _freeze(config, parts, point, student, cleanup, has_teacher=teacher is not None)
    check_trainable(student)
    terms = [*default_terms(config, parts.map_function), *parts.terms]
    check_terms(
        terms,
        has_teacher=teacher is not None,
        is_mixed=config.mixup > 0 or config.cutmix > 0,
        layers=config.layers,
    )
    check_gradient_terms(terms, config)
    callbacks = _callbacks(config, parts, runtime)
    prefer_channels_last(runtime, student, teacher)
    images = check_images(loaders, first, student, teacher, runtime, config)
    config = with_name(config, runtime, student, has_teacher=teacher is not None)
    paths = RunPaths(config)
    _check_room(config, paths, student, runtime, parts)
    if not is_auto:
        take_name(config, runtime, cleanup)
    if not point.goes_on(config) and not config.overwrite:
        paths.refuse_to_take_logs()
        if not is_auto:
            paths.refuse_to_overwrite()
    teacher_digest = None if teacher is None else weights_digest(teacher)
    data_digest, unlabelled_digest = data_digests(loaders)
    of_teacher = teacher_recipe(teacher, config)
    _refuse_another_run(point, config, terms, (teacher_digest, of_teacher), data_digest)

    cache_pixels_of(loaders, config, runtime)
    config = _in_precision(config, runtime, student, teacher, loaders, images)
    teachers = build_teachers(config, teacher, loaders.train, loaders.val, runtime, needs_of_teacher(terms))
    cleanup.callback(teachers.close)
    build_terms(terms, config, student, teacher, images, runtime)
    state = _first_state(config, student, terms, callbacks, parts, batches_of(loaders.train), unlabelled_digest)
    state.recipe |= of_teacher | compared_stages(
        config, terms, student, teacher, images_of(loaders, first, images), runtime
    )
    refuse_another_recipe(state.recipe, point, config)
    state.class_weights, state.frozen = class_weights, frozen
    state.teacher_digest, state.data_digest, state.data_classes = teacher_digest, data_digest, data_classes
    _begin(point, state, paths, runtime, loaders, has_own_scheduler=parts.scheduler is not None)
    run = RunContext(
        config=config,
        state=state,
        paths=paths,
        runtime=runtime,
        teacher=teacher,
        splits=loaders.splits(),
        batches=batches_of(loaders.train),
        validates=loaders.val is not None,
        images_per_class=counts,
        images=images,
        captured_logs=captured_logs,
    )
    return PreparedRun(run, loaders, teachers, terms, list(callbacks.values()))


def _callbacks(config: Config, parts: UserParts, runtime: AcceleratedRuntime) -> dict[str, Callback]:
    all_or_raise(runtime, lambda: check_trackers(config.trackers) if runtime.is_main else None)
    return by_name([*default_callbacks(), *parts.callbacks])


def _open_student(config: Config, parts: UserParts, point: ResumePoint) -> nn.Module:
    begins = point.checkpoint is None
    if config.init_from is not None and not begins:
        logger.info("init_from is not read: the run goes on from %s", point.source)
    return open_student(config, parts.student, begins=begins)


def _freeze(
    config: Config,
    parts: UserParts,
    point: ResumePoint,
    student: nn.Module,
    cleanup: ExitStack,
    *,
    has_teacher: bool,
) -> tuple[str, ...]:
    """Freeze modules of the student until the run is over; their names."""
    for parameter in student.parameters() if config.freeze is not None else ():
        cleanup.callback(parameter.requires_grad_, parameter.requires_grad)
    sources = (parts.student, config.weights, config.init_from, point.checkpoint)
    is_random = all(source is None for source in sources)
    warn_of_useless_freezing(config, has_teacher=has_teacher, is_random=is_random)
    return freeze(student, config)


def _resume_point(config: Config, runtime: AcceleratedRuntime, parts: UserParts) -> ResumePoint:
    """What is resumed, with settings whose recipe makes sense."""
    point = find_resume_point(config, runtime)
    check_recipe(point.config, own_optimizer=parts.optimizer is not None, own_scheduler=parts.scheduler is not None)
    return point


def _check_room(
    config: Config, paths: RunPaths, student: nn.Module, runtime: AcceleratedRuntime, parts: UserParts
) -> None:
    of_optimizer = state_size(config) if parts.optimizer is None else None
    size = checkpoint_bytes(student, of_optimizer, has_ema=config.ema is not None)
    all_or_raise(runtime, lambda: check_disk_space(config.save_dir, config.log_dir, size) if runtime.is_main else None)
    if runtime.is_main:
        warn_of_little_disk_space(paths, range(config.save_freq, config.epochs + 1, config.save_freq), size)


def _refuse_another_run(
    point: ResumePoint,
    config: Config,
    terms: Sequence[LossTerm],
    teacher: tuple[str | None, Mapping[str, str]],
    data_digest: str | None,
) -> None:
    refuse_another_teacher(*teacher, point)
    refuse_other_data(data_digest, point, config)
    refuse_another_loss({term.name: term.weight for term in terms}, point, config)


def _first_state(
    config: Config,
    student: nn.Module,
    terms: Sequence[LossTerm],
    callbacks: Mapping[str, Callback],
    parts: UserParts,
    batches: int | None,
    unlabelled: str,
) -> RunState:
    """The run before its first epoch, of `batches` batches each, with unlabelled images of this digest."""
    of_terms = [parameter for term in terms for parameter in term.parameters()]
    groups = parameter_groups(student, of_terms, config, only_trained=config.freeze is not None)
    optimizer = make_optimizer(config, groups, parts.optimizer)
    if parts.optimizer is None:
        logger.info("%s", optimizer_in_words(config, optimizer))
    stateful: dict[str, Stateful] = {f"the loss term {term.name}": term for term in terms}
    stateful |= {f"the callback {name}": callback for name, callback in callbacks.items()}
    scheduler = make_scheduler(config, optimizer, parts.scheduler, batches)
    check_states({**stateful, "the optimizer": optimizer, "the scheduler": scheduler})
    return RunState(
        config,
        student,
        optimizer,
        scheduler,
        loss_weights={term.name: term.weight for term in terms},
        recipe={
            "optimizer": _class_name(optimizer),
            "scheduler": _class_name(scheduler.scheduler),
            MAP_FUNCTION: chosen_map_function(config, parts.map_function).name,
            UNLABELLED_IMAGES: unlabelled,
        },
        stateful=stateful,
        ema=None if config.ema is None else EmaWeights(student, config.ema),
    )


def _class_name(made: object) -> str:
    return f"{type(made).__module__}.{type(made).__qualname__}"


def _in_precision(
    config: Config,
    runtime: AcceleratedRuntime,
    student: nn.Module,
    teacher: nn.Module | None,
    loaders: Loaders,
    images: Tensor | None,
) -> Config:
    """The configuration with the number formats resolved; sets the runtime's to the student's."""
    shape = batch_shape(config, loaders.train, images, runtime.world_size)
    batches = batches_of(loaders.train)
    steps = None if batches is None else batches * config.epochs
    precision = choose_precision(config, runtime, student, teacher, shape, steps, cache_folder(config.cache_dir))
    runtime.use_precision(precision)
    config = config.model_copy(update={"precision": precision})
    return config if teacher is None else with_teacher_precision(config, runtime, teacher, shape)


def _begin(
    point: ResumePoint,
    state: RunState,
    paths: RunPaths,
    runtime: AcceleratedRuntime,
    loaders: Loaders,
    *,
    has_own_scheduler: bool,
) -> None:
    """Restore the checkpoint to resume from, if any, and remove files of an earlier run of the same name."""
    checkpoint: dict[str, Any] | None = point.checkpoint
    if not has_own_scheduler:
        warn_of_fading(state.config, state.optimizer, goes_on=checkpoint is not None)
    if checkpoint is not None:
        data_digest = state.data_digest
        state.restore(checkpoint, point.source, runtime)
        point.log_changes(runtime)
        log_stretched_schedules(point, state.config)
        is_same_data = data_digest == checkpoint["training"]["data_digest"]
        if state.unfinished is not None and not (is_same_data and own_sampler(loaders.train, runtime.world_size)):
            logger.info("%s is inside an epoch of other images: that epoch starts again", point.source)
            state.unfinished = None
            state.scheduler.begin_again(state.epoch)
        refuse_to_go_back(state, point)
    if runtime.is_main:
        _clear_away(point, state, paths)


def _clear_away(point: ResumePoint, state: RunState, paths: RunPaths) -> None:
    if point.goes_on(state.config):
        paths.set_aside(checkpoints_beyond(state.epoch, state.step, paths))
        return
    if not state.config.overwrite and paths.checkpoints():
        # resume='auto' could read none of them, but the user may be able to
        paths.set_aside()
    paths.clear(but=point.source)
