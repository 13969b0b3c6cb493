"""Timing of two number formats: the same step in fp32 and in bf16, alternating, within a time budget."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD

from attention_transfer.config import Config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import Runtime
from attention_transfer.features.signals import Needs, Signal
from attention_transfer.logs import log_once
from attention_transfer.losses.term import LossTerm
from attention_transfer.losses.total import default_terms, needs_of_teacher
from attention_transfer.modules import unwrapped
from attention_transfer.networks.class_lists import students_classes
from attention_transfer.teacher.base import NoTeacher, Teacher, TeacherOutput
from attention_transfer.teacher.build import make_runner, make_teacher
from attention_transfer.teacher.classes import match_logits
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.epoch import run_training_epoch

LEAST_BUDGET = 2.0
SHARE_OF_RUN = 0.01
LEAST_SPEEDUP = 1.15
LEAST_ROUNDS, MOST_ROUNDS = 2, 7
FEW_IMAGES = 2
HOPELESS = 4.0

Shape = tuple[int, ...]
Step = Callable[[str, int], object]
"""Runs one step, given the number format and the number of images."""
Clock = Callable[[], float]
"""Returns seconds, from an arbitrary start."""


class Times(NamedTuple):
    """Seconds of a step in either number format."""

    fp32: float
    bf16: float

    @property
    def winner(self) -> str:
        """bf16 where it is at least 15 % faster; less is not worth its rounding."""
        return "bf16" if self.fp32 >= LEAST_SPEEDUP * self.bf16 else "fp32"


class NotComparedError(Exception):
    """The two number formats could not be compared; always caught here, its message ends a log line."""


Comparison = Callable[[Step, int, int | None], Times]
"""Times a step, given the number of images and of remaining steps; `compare` is one."""


def compare(step: Step, size: int, steps: int | None, clock: Clock = time.perf_counter) -> Times:
    """Time a step in fp32 and in bf16, alternating.

    Rounds on a few images and on a quarter of the batch come first, to estimate a whole step: a processor may need a
    minute in bf16 for what takes a second in fp32. One whole round warms up. Of the following ones the fastest step
    counts, as other load only slows steps down; after the second of them, timing ends with the two seconds.

    Args:
        step: runs one step, and returns once it is done.
        size: images per step of the run.
        steps: steps of the run; None if unknown.
        clock: the time source.

    Raises:
        NotComparedError: two rounds do not fit into max(2 s, 1 % of the run); bf16 is far slower; a step failed.
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
        # a user's network may raise anything; if it raises in fp32 as well, training will report it
        raise NotComparedError(f"a step in {precision} fails ({in_a_line(error)})") from error
    return clock() - began


def in_a_line(error: Exception) -> str:
    """Class and message of an error on one line, for the end of a sentence."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def training_step(
    config: Config, runtime: Runtime, student: nn.Module, teacher: nn.Module | None, shape: Shape
) -> Step:
    """A training step on a copy of the student; at learning rate 0, so that no step changes the next.

    Args:
        config: uses alpha, beta, temperature, layers, momentum and weight_decay.
        runtime: gives device and memory format.
        student: copied, and left unchanged.
        teacher: run once, on a single image; or None.
        shape: [B, C, H, W] of a batch.

    Raises:
        NotComparedError: the student cannot be copied, or the teacher fails.
    """
    trainee = _copy(unwrapped(student))
    batch = _random_batch(shape)
    optimizer = SGD(trainee.parameters(), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)
    repeated: Teacher = NoTeacher()
    if teacher is not None:
        repeated = _RepeatedOutput(_first_output(config, runtime, teacher, batch))
    with _quiet():
        matched = match_logits(teacher, students_classes(config), distils=config.alpha > 0)

    def step(precision: str, count: int) -> None:
        alone = Runtime(runtime.device, precision)
        alone.memory_format = runtime.memory_format
        part = Batch(batch.images[:count], batch.labels[:count])
        with _quiet():
            run_training_epoch(
                Criterion(config, repeated, alone, _timed_terms(config), matched), trainee, [part], optimizer, alone
            )

    return step


def answering_step(config: Config, runtime: Runtime, teacher: nn.Module, shape: Shape) -> Step:
    """A forward pass of the teacher, as a run makes it.

    Args:
        config: uses alpha, beta, temperature and layers.
        runtime: gives device and memory format.
        teacher: on the device.
        shape: [B, C, H, W] of a batch.
    """
    batch, needs = _random_batch(shape), needs_of_teacher(default_terms(config))
    with _quiet():
        runners = {
            precision: make_runner(config, teacher, batch.images, runtime, partial(runtime.autocast, precision), needs)
            for precision in ("fp32", "bf16")
        }

    def step(precision: str, count: int) -> None:
        runner = runners[precision]
        runner.chunk = count
        runner.run(batch.images[:count], batch.labels[:count])

    return step


def _timed_terms(config: Config) -> list[LossTerm]:
    """The terms of the settings, but for those with layers of their own, which are not built yet."""
    return [term for term in default_terms(config) if type(term).build is LossTerm.build]


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


def _first_output(config: Config, runtime: Runtime, teacher: nn.Module, batch: Batch) -> TeacherOutput:
    image = batch.images[:1].contiguous(memory_format=runtime.memory_format)
    try:
        needs = Needs.union(term.needs for term in _timed_terms(config))
        return make_teacher(teacher, config, runtime, needs)(Batch(image, batch.labels[:1]))
    except Exception as error:
        raise NotComparedError(f"the teacher fails ({in_a_line(error)})") from error


class _RepeatedOutput:
    """A teacher that repeats one output for every image, at no cost: its own speed is not what is timed."""

    def __init__(self, output: TeacherOutput) -> None:
        self._output = output

    def __call__(self, batch: Batch) -> TeacherOutput:
        def for_all(x: Tensor) -> Tensor:
            return x.expand(len(batch.labels), *x.shape[1:])

        def repeated(signal: Signal) -> Signal:
            value = signal.value
            coverage = None if signal.coverage is None else tuple(map(for_all, signal.coverage))
            value = for_all(value) if isinstance(value, Tensor) else tuple(map(for_all, value))
            return replace(signal, value=value, coverage=coverage)

        return TeacherOutput({name: repeated(signal) for name, signal in self._output.items()})


@contextmanager
def _quiet() -> Iterator[None]:
    """Mute the library's log: a step would log about the copy what the run is about to log about the network."""
    library = logging.getLogger("attention_transfer")
    level = library.level
    library.setLevel(logging.WARNING)
    try:
        yield
    finally:
        library.setLevel(level)
        log_once.cache_clear()
