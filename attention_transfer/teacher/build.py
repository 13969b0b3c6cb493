"""Which teacher a run gets: the network on every batch, or its cached outputs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.class_names import Classes
from attention_transfer.config import Config
from attention_transfer.data.loading.loaders import own_sampler
from attention_transfer.distributed import Runtime
from attention_transfer.errors import ConfigError
from attention_transfer.features.attention_discovery import find_attention
from attention_transfer.features.attention_probabilities import AttentionLayout
from attention_transfer.features.signals import Needs
from attention_transfer.features.stages.choose import choose_stages, split_layers
from attention_transfer.features.stages.stage import Stage
from attention_transfer.logs import log_once
from attention_transfer.modules import like_weights
from attention_transfer.networks.class_lists import students_classes
from attention_transfer.networks.input_shapes import TEACHER, refusing_misfits
from attention_transfer.networks.preprocessing import preprocessing_of
from attention_transfer.networks.registry import card_of
from attention_transfer.teacher.base import NoTeacher, Teacher
from attention_transfer.teacher.cache.open import open_cache, probed_images
from attention_transfer.teacher.cache.plan import CachePlan, plan_for
from attention_transfer.teacher.cache.teacher import CachedTeacher
from attention_transfer.teacher.classes import labels_in_teacher
from attention_transfer.teacher.online import OnlineTeacher
from attention_transfer.teacher.runner import CHUNK, MAPS_AND_LOGITS, FrozenRunner, chunk_for

logger = logging.getLogger(__name__)


def make_teacher(
    teacher_model: nn.Module | None,
    config: Config,
    runtime: Runtime,
    needs: Needs = MAPS_AND_LOGITS,
    student: Classes | None = None,
) -> Teacher:
    """The teacher for a user's own training loop: the network runs on every batch; or no teacher.

    Args:
        teacher_model: the network, on the device; changes to it between batches take effect. None: no teacher.
        config: beta and layers are used.
        runtime: gives number format and memory format.
        needs: the signals that the loss needs.
        student: the classes of the student; None: those of the settings.
    """
    if teacher_model is None:
        return NoTeacher()
    own_labels = _own_labels(teacher_model, needs, student or students_classes(config))

    def make_runner(images: Tensor) -> FrozenRunner:
        preprocess = preprocessing_of(teacher_model, config, images)
        seen = like_weights(preprocess(images), teacher_model)
        with refusing_misfits(teacher_model, seen, TEACHER):
            stages = _tapped(teacher_model, seen, config) if needs.stages else ()
            layout = _layout(teacher_model, seen, config) if needs.blocks else None
        return FrozenRunner(
            teacher_model,
            stages,
            images,
            needs=needs,
            autocast=runtime.autocast,
            memory_format=runtime.memory_format,
            fold=False,
            layout=layout,
            to_own_labels=own_labels,
            preprocess=preprocess,
        )

    return OnlineTeacher(make_runner)


def make_runner(
    config: Config,
    teacher: nn.Module,
    images: Tensor,
    runtime: Runtime,
    autocast: Callable[[], AbstractContextManager[Any]],
    needs: Needs,
    chunk: int = CHUNK,
) -> FrozenRunner:
    """The teacher's runner for these settings.

    Args:
        config: beta and layers are used.
        teacher: the network, on the device.
        images: [B, 3, H, W], like those to come; its stages are found and its folding is checked on them.
        runtime: gives the memory format for a user's network.
        autocast: makes the context that gives the number format.
        needs: the signals that the loss needs.
        chunk: images in a pass, see `chunk_for`.
    """
    preprocess = preprocessing_of(teacher, config, images)
    seen = like_weights(preprocess(images), teacher)
    return FrozenRunner(
        teacher,
        _tapped(teacher, seen, config) if needs.stages else (),
        images,
        needs=needs,
        autocast=autocast,
        chunk=chunk,
        memory_format=memory_format_of(teacher, runtime),
        layout=_layout(teacher, seen, config) if needs.blocks else None,
        to_own_labels=_own_labels(teacher, needs, students_classes(config)),
        preprocess=preprocess,
    )


def _own_labels(teacher: nn.Module, needs: Needs, student: Classes) -> tuple[int, ...] | None:
    return labels_in_teacher(teacher, student) if needs.gradient else None


def _layout(teacher: nn.Module, images: Tensor, config: Config) -> AttentionLayout | None:
    try:
        return find_attention(teacher, images)
    except ConfigError as error:
        if config.beta > 0:
            raise
        log_once(f"the teacher's attention probabilities are not compared: {error}")
        return None


def memory_format_of(teacher: nn.Module, runtime: Runtime) -> torch.memory_format:
    """Channels-last for our networks, whatever the student is: their outputs are cached for other runs as well."""
    return runtime.memory_format if card_of(teacher) is None else torch.channels_last


def _tapped(teacher: nn.Module, images: Tensor, config: Config) -> tuple[Stage, ...]:
    _, layers = split_layers(config.layers)
    try:
        return choose_stages(teacher, images, layers).stages
    except ConfigError as error:
        if config.beta > 0 or config.hint > 0:
            raise
        log_once(f"the teacher's stages are not compared: {error}")
        return ()


Loader = Iterable[Any]


@dataclass
class Teachers:
    """The teachers for the training and for the validation images; to be closed."""

    train: Teacher
    val: Teacher

    @property
    def are_kept(self) -> bool:
        """Whether outputs are kept for other runs, or rounded as if they were."""
        return any(isinstance(teacher, CachedTeacher) for teacher in (self.train, self.val))

    def close(self) -> None:
        """Close the caches; from then on the network runs for everything."""
        with ExitStack() as closing:
            for teacher in (self.train, self.val):
                if isinstance(teacher, CachedTeacher):
                    closing.callback(teacher.close)

    def log_cache_hits(self, epoch: int, runtime: Runtime) -> None:
        """Log the cache hits and misses of the training images since the last call, summed over all processes.

        Every process must call this together.
        """
        if not isinstance(self.train, CachedTeacher) or self.train.cache is None:
            return
        counts = torch.tensor([self.train.hits, self.train.misses], device=runtime.device)
        hits, misses = runtime.sum_over_processes(counts).tolist()
        self.train.hits = self.train.misses = 0
        logger.info(
            "epoch %d: %s images answered from memory, %s by the teacher's network",
            epoch, f"{hits:,}", f"{misses:,}",
        )  # fmt: skip


def build_teachers(
    config: Config, teacher: nn.Module | None, train: Loader, val: Loader | None, runtime: Runtime, needs: Needs
) -> Teachers:
    """The teachers of a run, with their caches open, to be closed; every process must call this together.

    Where nothing is kept for other runs, a GPU may choose its kernels by timing.

    Args:
        config: alpha, beta, layers, epochs, teacher_precision (no longer 'auto') and the cache's settings are used.
        teacher: the network, on the device; None for a run without.
        train: the loader of the training images.
        val: that of the validation images; None for none.
        runtime: gives device, memory format and processes.
        needs: the signals that the loss needs.

    Raises:
        CacheError: teacher_cache is 'on', and the cache cannot be written.
    """
    teachers = Teachers(NoTeacher(), NoTeacher())
    if teacher is None:
        runtime.time_kernels()
        return teachers
    sampler = own_sampler(train)
    batch_size = config.batch_size if sampler is None else sampler.batch_size
    chunk = chunk_for(runtime.device, math.ceil(batch_size / runtime.world_size))
    make = _maker(config, teacher, runtime, needs, chunk)
    with ExitStack() as opened:
        opened.callback(teachers.close)
        for role, loader in (("train", train), ("val", val)):
            plan = None if loader is None else plan_for(role, loader, config.epochs, runtime.world_size)
            if role == "train" and (plan is None or plan.views is None):
                _log_cost(plan)
            setattr(teachers, role, _cached(plan, config, teacher, make, runtime, needs) or OnlineTeacher(make))
        opened.pop_all()
    if not teachers.are_kept:
        runtime.time_kernels()
    return teachers


def _cached(
    plan: CachePlan | None,
    config: Config,
    teacher: nn.Module,
    make: Callable[[Tensor], FrozenRunner],
    runtime: Runtime,
    needs: Needs,
) -> CachedTeacher | None:
    if plan is None or plan.views is None:
        return None
    if needs.uncacheable:
        log_once(f"the teacher runs on every batch: the loss needs its {' and '.join(needs.uncacheable)}, not cached")
        return None
    runner = make(probed_images(plan, runtime.device))
    if runner.depends_on_batch or not runner.has_maps:
        log_once("the teacher runs on every batch: it has no maps to cache, or its outputs depend on the batch")
        return None
    return open_cache(plan, config, teacher, runner, runtime)


def _log_cost(plan: CachePlan | None) -> None:
    if plan is None:
        logger.info(
            "the teacher runs on every batch: the loader does not tell which samples are in it, so that nothing can "
            "be cached (the loaders of prepare_dataloaders do)"
        )
    else:
        logger.info("%s", plan.cost)


def _maker(
    config: Config, teacher: nn.Module, runtime: Runtime, needs: Needs, chunk: int
) -> Callable[[Tensor], FrozenRunner]:
    """A function that makes the teacher's runner from images [B, 3, H, W] when first called, one for the whole run."""
    made: list[FrozenRunner] = []

    def make(images: Tensor) -> FrozenRunner:
        if not made:
            in_precision = partial(runtime.autocast, config.teacher_precision)
            seen = preprocessing_of(teacher, config, images)(images)
            with refusing_misfits(teacher, seen, TEACHER):
                made.append(make_runner(config, teacher, images, runtime, in_precision, needs, chunk))
        return made[0]

    return make
