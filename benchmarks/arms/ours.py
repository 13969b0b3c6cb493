"""Ours, in the ways that a run can go: without a teacher, with one that is remembered, is being remembered, or runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attention_transfer import create_model, load_teacher_model
from attention_transfer.cache.folder import PRECISION_FILE, cache_folder
from attention_transfer.config import Config
from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.sampler import EpochBatchSampler
from attention_transfer.distributed import AcceleratedRuntime
from attention_transfer.features.maps import SUM_OF_SQUARES, energy
from attention_transfer.features.stages.choose import choose_stages
from attention_transfer.features.taps import Taps
from attention_transfer.losses.map_distance import map_distance
from attention_transfer.losses.total import default_terms, needs_of_teacher
from attention_transfer.teacher.build import Teachers, build_teachers
from attention_transfer.teacher.cache.prefill import prefill
from attention_transfer.teacher.cache.teacher import CachedTeacher
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.epoch import run_training_epoch
from attention_transfer.training.precision.choose import batch_shape, choose_precision, with_teacher_precision
from attention_transfer.training.setup.data.classes import with_classes
from attention_transfer.training.setup.data.loaders import cache_pixels_of, open_loaders
from attention_transfer.training.setup.networks import prefer_channels_last
from benchmarks.measuring.statistics import Block

BETA, LR = 1e3, 0.05
EPOCHS = 15


@dataclass(frozen=True)
class Task:
    """What is trained, and on what.

    Attributes:
        title: as the table has it.
        data: an image folder with train/ and val/.
        student: its network's name.
        teacher: makes the teacher's network.
        classes: how many there are.
        image_size: side of the images in pixels.
        batch_size: images a step.
        block: batches between two turns.
        cache: folder of the caches.
    """

    title: str
    data: Path
    student: str
    teacher: Callable[[], nn.Module]
    classes: int
    image_size: int
    batch_size: int
    block: int
    cache: Path

    def config(self, **changes: Any) -> Config:
        """The settings of a run of ours."""
        settings = {
            "data_dir": str(self.data),
            "model": self.student,
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "num_workers": 0,
            "augment": True,
            "augment_views": 4,
            "beta": BETA,
            "lr": LR,
            "epochs": EPOCHS,
            "device": "cpu",
            "cache_dir": str(self.cache),
        }
        return Config(**{**settings, **changes})


def cifar_task(data: Path, weights: Path, cache: Path) -> Task:
    """CIFAR-10, ResNet-56 to ResNet-20."""

    def teacher() -> nn.Module:
        return load_teacher_model(weights, 10, "cpu")

    return Task("CIFAR-10, ResNet-56 to ResNet-20", data, "CifarResNet-20", teacher, 10, 32, 128, 8, cache)


def photos_task(data: Path, cache: Path) -> Task:
    """Photos, ResNet50 to ResNet18; speed does not ask what the weights are, so they are drawn."""

    def teacher() -> nn.Module:
        torch.manual_seed(0)
        return create_model("ResNet50", 2).eval().requires_grad_(False)

    return Task("photos, ResNet50 to ResNet18", data, "ResNet18", teacher, 2, 128, 32, 5, cache)


def step_ratio(cache: Path, student: str) -> float:
    """r: the student's step in fp32 over that in bf16, as the trial found it; 1 where fp32 was chosen.

    Args:
        cache: the folder in which the trial is remembered.
        student: the network's name.
    """
    kept = cache / PRECISION_FILE
    trials: Mapping[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    of_student = [trial for kind, trial in trials.items() if kind.startswith("training") and student in kind]
    trial = of_student[-1] if of_student else {"precision": "fp32"}
    return float(trial["fp32"] / trial["bf16"]) if trial["precision"] == "bf16" else 1.0


class Part:
    """The next batches of a loader, as an epoch of their own; it goes on where the last one ended."""

    def __init__(self, loader: Any, batch_size: int) -> None:
        self._loader, self._batch_size = loader, batch_size
        self._batches = self._endless()
        self.batch_sampler = EpochBatchSampler(0, batch_size, shuffle=False)
        self._now: list[Batch] = []

    def _endless(self) -> Iterator[Batch]:
        while True:
            yield from self._loader

    def of(self, batches: int) -> Part:
        """The next `batches` batches; the short one at the end of an epoch is left out, so that blocks are equal."""
        self.batch_sampler.num_samples = batches * self._batch_size
        return self

    def __iter__(self) -> Iterator[Batch]:
        given = 0
        while given < len(self.batch_sampler):
            batch = next(self._batches)
            if len(batch.labels) == self._batch_size:
                given += 1
                yield batch


class Ours:
    """A run of ours, in blocks.

    Args:
        name: as the table has it.
        task: what is trained.
        teacher: whether there is one.
        refill: forget the teacher's answers before each block, so that it is one of filling.
        changes: of settings.
    """

    def __init__(self, name: str, task: Task, *, teacher: bool = True, refill: bool = False, **changes: Any) -> None:
        self.name, self.batch_size, self._refill = name, task.batch_size, refill
        config = task.config(**changes)
        self.runtime = AcceleratedRuntime(config)
        self._loaders = open_loaders(config, self.runtime, None, None, None)
        config = with_classes(config, self._loaders)
        torch.manual_seed(0)
        network = task.teacher() if teacher else None
        self.student = create_model(task.student, task.classes)
        prefer_channels_last(self.runtime, self.student, network)
        cache_pixels_of(self._loaders, config, self.runtime)
        self.config = self._in_precision(config, network)
        needs = needs_of_teacher(default_terms(self.config))
        self._teachers = build_teachers(self.config, network, self._loaders.train, None, self.runtime, needs)
        if isinstance(self._teachers.train, CachedTeacher) and not refill:
            prefill(self._teachers.train, self.runtime.device)
        self._criterion = Criterion(self.config, self._teachers.train, self.runtime)
        self._optimizer = torch.optim.SGD(self.student.parameters(), LR, momentum=0.9, weight_decay=5e-4)
        self._part = Part(self._loaders.train, task.batch_size)

    def _in_precision(self, config: Config, teacher: nn.Module | None) -> Config:
        shape = batch_shape(config, self._loaders.train, None, 1)
        steps = len(self._loaders.train) * EPOCHS  # type: ignore[arg-type]
        folder = cache_folder(config.cache_dir)
        # The number format is chosen for the run with a teacher, and every arm computes in it.
        precision = choose_precision(config, self.runtime, self.student, None, shape, steps, folder)
        self.runtime.use_precision(precision)
        config = config.model_copy(update={"precision": precision})
        return config if teacher is None else with_teacher_precision(config, self.runtime, teacher, shape)

    def block(self, batches: int) -> Block:
        """The next `batches` steps, timed."""
        self._forget()
        began = time.perf_counter()
        means = run_training_epoch(self._criterion, self.student, self._part.of(batches), self._optimizer, self.runtime)
        seconds = time.perf_counter() - began
        return Block(means.samples, seconds, (means.figures["loss"],))

    def _forget(self) -> None:
        teacher: Any = self._teachers.train
        if self._refill and teacher.cache is not None:
            teacher.cache.clear()

    def batches(self) -> Iterator[Batch]:
        """The batches of an epoch, as the loop gets them."""
        return iter(self._loaders.train)

    def attention_alone(self) -> Callable[[], object]:
        """The attention loss of one batch, forward and backward, on the features that the student has for it."""
        batch = next(self.batches())
        answer = self._teachers.train(batch)
        stages = choose_stages(self.student, batch.images).stages
        with self.runtime.autocast(), Taps(self.student, stages) as taps:
            self.student(batch.images)
        features = [x.detach().requires_grad_() for x in taps.features]
        maps = answer.maps(SUM_OF_SQUARES)
        coverage = answer[SUM_OF_SQUARES.signal].coverage or [None] * len(features)

        def forward_and_backward() -> object:
            sides = zip(features, maps, coverage, strict=True)
            losses = [map_distance(energy(x), y, mask=mask) for x, y, mask in sides]
            return torch.autograd.grad(torch.stack(losses).sum(), features)

        return forward_and_backward

    @property
    def teachers(self) -> Teachers:
        """Who answers."""
        return self._teachers
