"""Who teaches a run: the network on every batch, or its memory; decided once, before the first epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.cache.folder import cache_folder
from attention_transfer.config import Config
from attention_transfer.teacher.answer import NoTeacher, Teacher
from attention_transfer.teacher.live import RunningTeacher
from attention_transfer.teacher.looking import CHUNK, TeacherRunner
from attention_transfer.teacher.remembered import RememberedTeacher
from attention_transfer.training.lesson import Lesson, lesson_of
from attention_transfer.training.objective import say_once
from attention_transfer.training.precision import choose_teacher_precision
from attention_transfer.training.remembering import probed_images, remember
from attention_transfer.training.running import make_runner
from attention_transfer.training.runtime import Runtime

logger = logging.getLogger(__name__)

Loader = Iterable[Any]


@dataclass
class Teaching:
    """Who answers for the training images, and who for the validation images."""

    train: Teacher
    val: Teacher

    def say_who_answered(self, epoch: int, runtime: Runtime) -> None:
        """Log how many training images were answered from memory since the last time; all processes together."""
        if not isinstance(self.train, RememberedTeacher) or self.train.memory is None:
            return
        counts = torch.tensor([self.train.recalled, self.train.asked], device=runtime.device)
        recalled, asked = runtime.sum_over_processes(counts).tolist()
        self.train.recalled = self.train.asked = 0
        logger.info(
            "epoch %d: %s images answered from memory, %s by the teacher's network",
            epoch, f"{recalled:,}", f"{asked:,}",
        )  # fmt: skip


def open_teaching(
    config: Config, teacher: nn.Module | None, train: Loader, val: Loader | None, runtime: Runtime
) -> Teaching:
    """Decide who answers, and open the memories; every process must call this together.

    Args:
        config: alpha, beta, layers, epochs, teacher_precision (no longer 'auto') and the cache's settings are used.
        teacher: the network, on the device; None for a run without.
        train: the loader of the training images.
        val: that of the validation images.
        runtime: gives device, memory format and processes.

    Raises:
        CacheError: teacher_cache is 'on', and the answers cannot be kept.
    """
    if teacher is None:
        return Teaching(NoTeacher(), NoTeacher())
    make = _maker(config, teacher, runtime)
    opened: dict[str, Teacher] = {}
    for role, loader in (("train", train), ("val", val)):
        lesson = None if loader is None else lesson_of(role, loader, config.epochs, runtime.world_size)
        if role == "train" and (lesson is None or lesson.views is None):
            _say_that_it_runs(lesson)
        opened[role] = _remembered(lesson, config, teacher, make, runtime) or RunningTeacher(make)
    return Teaching(**opened)


def _remembered(
    lesson: Lesson | None,
    config: Config,
    teacher: nn.Module,
    make: Callable[[Tensor], TeacherRunner],
    runtime: Runtime,
) -> RememberedTeacher | None:
    if lesson is None or lesson.views is None:
        return None
    runner = make(probed_images(lesson, runtime.device))
    if runner.depends_on_batch or not runner.names:
        say_once("the teacher runs on every batch: it has no maps to remember, or what it says depends on the batch")
        return None
    return remember(lesson, config, teacher, runner, runtime)


def _say_that_it_runs(lesson: Lesson | None) -> None:
    if lesson is None:
        logger.info(
            "the teacher runs on every batch: the loader does not tell which samples are in it, so that nothing can "
            "be remembered (the loaders of prepare_dataloaders tell)"
        )
    else:
        logger.info("%s", lesson.cost)


def with_teacher_precision(config: Config, runtime: Runtime, teacher: nn.Module, shape: Sequence[int]) -> Config:
    """The configuration with the number format that teacher_precision='auto' comes to.

    Args:
        config: teacher_precision and cache_dir are used.
        runtime: gives device and processes.
        teacher: the network, on the device.
        shape: [B, C, H, W] of a batch of training.
    """
    folder = cache_folder(config.cache_dir)
    chosen = choose_teacher_precision(config, runtime, teacher, (CHUNK, *shape[1:]), folder)
    return config.model_copy(update={"teacher_precision": chosen})


def _maker(config: Config, teacher: nn.Module, runtime: Runtime) -> Callable[[Tensor], TeacherRunner]:
    """Makes what runs the network, once there are images to find its stages on; one for the whole run."""
    made: list[TeacherRunner] = []

    def make(images: Tensor) -> TeacherRunner:
        if not made:
            in_precision = partial(runtime.autocast, config.teacher_precision)
            made.append(make_runner(config, teacher, images, runtime, in_precision))
        return made[0]

    return make
