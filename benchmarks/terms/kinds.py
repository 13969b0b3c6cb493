"""What attention of other kinds costs a step: `python -m benchmarks.terms.kinds DATA`, an image folder.

For each kind the same steps with the teacher remembered, with constant tensors in its place (the floor: what the
student's side costs), live, and without a teacher. Arms take turns in blocks, and processor time is counted, so that
other load disturbs little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from attention_transfer import create_model
from attention_transfer.config import Config
from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.loaders import prepare_dataloaders
from attention_transfer.distributed import Runtime
from attention_transfer.losses.total import default_terms, needs_of_teacher
from attention_transfer.teacher.base import NoTeacher, Teacher, TeacherOutput
from attention_transfer.teacher.build import build_teachers
from attention_transfer.teacher.cache.prefill import prefill
from attention_transfer.teacher.cache.teacher import CachedTeacher
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.epoch import run_training_epoch
from benchmarks.arms.ours import Part
from benchmarks.measuring.statistics import ratio_interval
from benchmarks.measuring.timing import processor

BATCH, BLOCK, SIDE = 32, 3, 32
KINDS = ("sum", "gradient", "class_token")


class Constant:
    """A teacher that gives the output for its first batch to every batch."""

    def __init__(self, output: TeacherOutput) -> None:
        self._output = output

    def __call__(self, batch: Batch) -> TeacherOutput:
        return self._output


def networks(kind: str, classes: int) -> tuple[Callable[[], nn.Module], nn.Module]:
    """How the student is made, and the teacher; speed does not ask what the weights are."""
    torch.manual_seed(0)
    if kind != "class_token":
        return lambda: create_model("CifarResNet-20", classes), create_model("CifarResNet-32", classes)

    def vit(width: int, depth: int) -> nn.Module:
        sizes: dict[str, Any] = {"img_size": SIDE, "patch_size": 4, "embed_dim": width, "depth": depth}
        made: nn.Module = timm.create_model("vit_tiny_patch16_224", num_heads=3, num_classes=classes, **sizes)
        return made

    return lambda: vit(96, 6), vit(192, 12)


class Steps:
    """Training steps with one teacher.

    Args:
        make_student: makes the student.
        teacher: called with each batch.
        loader: of the training images.
        config: the settings.
        runtime: of the CPU.
    """

    def __init__(
        self, make_student: Callable[[], nn.Module], teacher: Teacher, loader: Any, config: Config, runtime: Runtime
    ) -> None:
        torch.manual_seed(0)
        self._student, self._runtime = make_student(), runtime
        self._criterion = Criterion(config, teacher, runtime)
        self._optimizer = torch.optim.SGD(self._student.parameters(), 0.01, momentum=0.9)
        self._part = Part(loader, BATCH)

    def seconds(self) -> float:
        """What the next steps take of the processor, whatever else it does."""
        began = time.process_time()
        run_training_epoch(self._criterion, self._student, self._part.of(BLOCK), self._optimizer, self._runtime)
        return time.process_time() - began


def compare(kind: str, data: str, cache: str, rounds: int) -> None:
    """Print the table of one kind."""

    def loader() -> Any:
        options: dict[str, Any] = {"augment": True, "augment_views": 2, "num_workers": 0, "image_size": SIDE}
        return prepare_dataloaders(data, BATCH, **options)[0]

    train, runtime = loader(), Runtime(torch.device("cpu"))
    settings: dict[str, Any] = {"attention": kind, "data_dir": data, "cache_dir": cache, "epochs": 30}
    config = Config(**settings, device="cpu", precision="fp32", teacher_precision="fp32", teacher_cache="on")
    make_student, network = networks(kind, len(train.dataset.classes))
    needs = needs_of_teacher(default_terms(config))
    kept = build_teachers(config, network, train, None, runtime, needs).train
    live = build_teachers(
        config.model_copy(update={"teacher_cache": "off"}), network, train, None, runtime, needs
    ).train
    assert isinstance(kept, CachedTeacher)
    prefill(kept, runtime.device)
    first = next(batch for batch in loader() if len(batch.labels) == BATCH)
    teachers: dict[str, Teacher] = {
        "constant tensors": Constant(kept(first)),
        "remembered": kept,
        "live": live,
        "no teacher": NoTeacher(),
    }
    arms = {name: Steps(make_student, each, loader(), config, runtime) for name, each in teachers.items()}
    found: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, arm in arms.items():
            seconds = arm.seconds()
            if turn:
                found[name].append(seconds)
    print(f"\n{kind}, processor time")
    for name, values in found.items():
        step = statistics.median(values) / BLOCK * 1e3
        print(f"  {name:20} {step:8.1f} ms a step   {ratio_interval(values, found['constant tensors'])} of constant")
    kept.close()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="an image folder, of at least 128 images")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    arguments = parser.parse_args()
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {BATCH}")
    with tempfile.TemporaryDirectory() as cache:
        for kind in arguments.kinds:
            compare(kind, arguments.data, cache, arguments.rounds)


if __name__ == "__main__":
    main()
