"""A trial of two number formats: the same step in fp32 and in bf16, in turns, within a budget of time."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD

from attention_transfer.config import Config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import Runtime
from attention_transfer.features.signals import Signal
from attention_transfer.logs import log_once
from attention_transfer.modules import unwrapped
from attention_transfer.networks.class_lists import students_classes
from attention_transfer.teacher.base import NoTeacher, Teacher, TeacherOutput
from attention_transfer.teacher.build import make_runner, make_teacher
from attention_transfer.teacher.classes import match_logits
from attention_transfer.training.criterion import Criterion, default_terms, needs_of_teacher
from attention_transfer.training.epoch import run_training_epoch

LEAST_BUDGET = 2.0
SHARE_OF_RUN = 0.01
LEAST_SPEEDUP = 1.15
LEAST_ROUNDS, MOST_ROUNDS = 2, 7
FEW_IMAGES = 2
HOPELESS = 4.0

Shape = tuple[int, ...]
Step = Callable[[str, int], object]
"""One step in a number format, on so many images."""
Clock = Callable[[], float]
"""Tells seconds, from anywhere."""


class Times(NamedTuple):
    """Seconds of a step in either number format."""

    fp32: float
    bf16: float

    @property
    def winner(self) -> str:
        """bf16 where it is at least 15 % faster; less is not worth its rounding."""
        return "bf16" if self.fp32 >= LEAST_SPEEDUP * self.bf16 else "fp32"


class NotComparedError(Exception):
    """Why the two number formats were not compared; always caught here, its message ends a line of the log."""


Comparison = Callable[[Step, int, int | None], Times]
"""Times a step, given the number of images and how many steps are to come; `compare` is one."""


def compare(step: Step, size: int, steps: int | None, clock: Clock = time.perf_counter) -> Times:
    """Time a step in fp32 and in bf16, in turns.

    Rounds on a few images and on a quarter of them come first: they tell how long a whole step will take, and a
    processor may need a minute in bf16 for what it does in a second in fp32. One whole round warms up. Of those that
    follow the fastest step counts, as whatever else the machine does only slows steps down; after the second they
    end with the two seconds.

    Args:
        step: does one step; waits for its end.
        size: the number of images of a step of the run.
        steps: how many such steps the run has; None where nobody knows.
        clock: what the step is timed by.

    Raises:
        NotComparedError: two rounds do not fit into max(2 s, 1 % of the run); bf16 is hopeless; a step failed.
    """
    began = clock()
    few = min(FEW_IMAGES, size)
    attempts = [few, few, max(few, size // 4), size]
    latest, images = Times(0.0, 0.0), few
    rounds: list[Times] = []
    for turn, count in enumerate([*attempts, *[size] * MOST_ROUNDS]):
        latest, images = Times(*(seconds * count / images for seconds in latest)), count
        budget = LEAST_BUDGET
        if len(rounds) < LEAST_ROUNDS:
            budget = max(LEAST_BUDGET, SHARE_OF_RUN * (steps or 0) * latest.fp32 * size / count)
        needed = LEAST_ROUNDS if turn == len(attempts) else 1
        if clock() - began + needed * sum(latest) > budget:
            break
        latest = Times(_seconds(step, "fp32", count, clock), _seconds(step, "bf16", count, clock))
        if turn in (1, 2) and latest.bf16 > HOPELESS * latest.fp32:
            ratio = latest.bf16 / latest.fp32
            raise NotComparedError(f"on {count} images a step takes {ratio:.0f} times as long in bf16")
        if turn >= len(attempts):
            rounds.append(latest)
    if len(rounds) < LEAST_ROUNDS:
        raise NotComparedError(
            f"no time to compare it with bf16 (a step in fp32 takes about {latest.fp32 * size / images:.2g} s, and "
            f"{budget:.2g} s may be spent; precision='bf16' tries it)"
        )
    return Times(min(times.fp32 for times in rounds), min(times.bf16 for times in rounds))


def _seconds(step: Step, precision: str, count: int, clock: Clock) -> float:
    began = clock()
    try:
        step(precision, count)
    except Exception as error:
        # a user's network may raise anything; if it raises in fp32 as well, training is about to say so
        raise NotComparedError(f"a step in {precision} fails ({in_a_line(error)})") from error
    return clock() - began


def in_a_line(error: Exception) -> str:
    """The class and the message of an error, for the end of a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def training_step(
    config: Config, runtime: Runtime, student: nn.Module, teacher: nn.Module | None, shape: Shape
) -> Step:
    """The step of an epoch on a copy of the student; at a learning rate of 0, so that no step changes the next."""
    trainee = _copy(unwrapped(student))
    batch = _random_batch(shape)
    optimizer = SGD(trainee.parameters(), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)
    answers: Teacher = NoTeacher() if teacher is None else _SameAnswer(_first_answer(config, runtime, teacher, batch))
    with _in_silence():
        matched = match_logits(teacher, students_classes(config), distils=config.alpha > 0)

    def step(precision: str, count: int) -> None:
        alone = Runtime(runtime.device, precision)
        alone.memory_format = runtime.memory_format
        part = Batch(batch.images[:count], batch.labels[:count])
        with _in_silence():
            run_training_epoch(
                Criterion(config, answers, alone, match_logits=matched), trainee, [part], optimizer, alone
            )

    return step


def answering_step(config: Config, runtime: Runtime, teacher: nn.Module, shape: Shape) -> Step:
    """An answer of the teacher's network, run as a run has it."""
    images, formats = _random_batch(shape).images, ["fp32"]
    needs = needs_of_teacher(default_terms(config))
    with _in_silence():
        runner = make_runner(config, teacher, images, runtime, lambda: runtime.autocast(formats[0]), needs)

    def step(precision: str, count: int) -> None:
        formats[0], runner.chunk = precision, count
        runner.run(images[:count])

    return step


def _copy(student: nn.Module) -> nn.Module:
    try:
        copied = copy.deepcopy(student)
        shared = _addresses(student) & _addresses(copied)
    except Exception as error:
        raise NotComparedError(f"{type(student).__name__} cannot be copied ({in_a_line(error)})") from error
    if shared:
        raise NotComparedError(f"a copy of {type(student).__name__} shares its weights with it")
    return copied


def _addresses(network: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in [*network.parameters(), *network.buffers()] if tensor.numel()}


def _random_batch(shape: Shape) -> Batch:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.zeros(shape[0], dtype=torch.int64))


def _first_answer(config: Config, runtime: Runtime, teacher: nn.Module, batch: Batch) -> TeacherOutput:
    image = batch.images[:1].contiguous(memory_format=runtime.memory_format)
    try:
        return make_teacher(teacher, config, runtime)(Batch(image, batch.labels[:1]))
    except Exception as error:
        raise NotComparedError(f"the teacher does not answer ({in_a_line(error)})") from error


class _SameAnswer:
    """A teacher that says the same of every image, at no cost: how it comes to its answers is not compared here."""

    def __init__(self, answer: TeacherOutput) -> None:
        self._answer = answer

    def __call__(self, batch: Batch) -> TeacherOutput:
        def for_all(x: Tensor) -> Tensor:
            return x.expand(len(batch.labels), *x.shape[1:])

        def repeated(signal: Signal) -> Signal:
            value = signal.value
            return replace(signal, value=for_all(value) if isinstance(value, Tensor) else tuple(map(for_all, value)))

        return TeacherOutput({name: repeated(signal) for name, signal in self._answer.items()})


@contextmanager
def _in_silence() -> Iterator[None]:
    """What a step has to say of a network it says of the copy here; the run says it again a moment later."""
    library = logging.getLogger("attention_transfer")
    level = library.level
    library.setLevel(logging.WARNING)
    try:
        yield
    finally:
        library.setLevel(level)
        log_once.cache_clear()
