"""How near is what the student hears from a remembered teacher to what the user's own network says?

    python -m benchmarks.fidelity --archive cifar10-jpeg.tar.xz --teacher cifar10-jpeg-resnet56.pth

trains a ResNet-20 on 2,000 images of CIFAR-10, and holds it still as drawn, after one epoch and at the end. On the same
batches, the teacher as it was loaded (fp32, nothing folded, the paper's expression) is the truth; answers that are read
back from a memory on disk are compared with it: each stage's map (the worst image), the AT loss by itself, and the
student's gradient of it. Target with a teacher in fp32 and records in float16: 1e-3, relative. About three minutes.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from attention_transfer import (
    create_at_config,
    create_model,
    load_model,
    load_teacher_model,
    prepare_dataloaders,
    train_at,
)
from attention_transfer.data.batches import Batch
from attention_transfer.data.dataset import ImageDataset
from attention_transfer.features.maps import SUM_OF_SQUARES, energy
from attention_transfer.features.signals import Needs
from attention_transfer.features.stages.choose import choose_stages
from attention_transfer.features.taps import Taps
from attention_transfer.losses.map_distance import map_distance
from attention_transfer.teacher.base import TeacherOutput
from attention_transfer.teacher.cache.index import ViewIndex
from attention_transfer.teacher.cache.prefill import prefill
from attention_transfer.teacher.cache.store import OutputShape, TeacherCache
from attention_transfer.teacher.cache.teacher import CachedTeacher
from attention_transfer.teacher.runner import FrozenRunner
from benchmarks.arms.benchmark_data import cifar_slice
from benchmarks.measuring.timing import processor
from benchmarks.terms.attention_loss import textbook_map, textbook_to_maps

TARGET = 1e-3
BATCHES, BATCH_SIZE = 4, 128
CPU = torch.device("cpu")


class Way(NamedTuple):
    """A way to run and to keep a teacher.

    Attributes:
        fold: whether batch norm is folded; precision: of its network; map_precision: of the records.
    """

    fold: bool
    precision: str
    map_precision: str

    def __str__(self) -> str:
        folded = "folded" if self.fold else "not folded"
        return f"{self.precision}, {folded}, records in {self.map_precision}"

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that gives the number format."""
        return nullcontext() if self.precision == "fp32" else torch.autocast("cpu", torch.bfloat16)


WAYS = (
    Way(fold=False, precision="fp32", map_precision="fp16"),
    Way(fold=False, precision="fp32", map_precision="fp32"),
    Way(fold=True, precision="fp32", map_precision="fp16"),
    Way(fold=False, precision="bf16", map_precision="fp16"),
    Way(fold=True, precision="bf16", map_precision="fp16"),
)
HELD_TO_TARGET = (WAYS[0], WAYS[2])


def remembered(teacher: nn.Module, dataset: ImageDataset, folder: Path, way: Way) -> CachedTeacher:
    """The teacher around a memory on disk that holds all its answers.

    Args:
        teacher: in eval mode, on the CPU.
        dataset: whose views come back.
        folder: of the memory.
        way: how it runs, and what is kept.
    """
    some = dataset.whole(range(8))
    runner = FrozenRunner(
        teacher,
        choose_stages(teacher, some).stages,
        some,
        needs=Needs(maps=(SUM_OF_SQUARES,)),
        autocast=way.autocast,
        memory_format=torch.channels_last,
        fold=way.fold,
    )
    maps = runner.run(some[:1]).maps(SUM_OF_SQUARES)
    shape = OutputShape(tuple((stage.shape[1], stage.shape[2]) for stage in maps), None, way.map_precision)
    index = ViewIndex(dataset, torch.tensor(dataset.targets), 1)
    identity = hashlib.sha256(str(way).encode()).hexdigest()
    heard = CachedTeacher(runner, index, shape, TeacherCache.open(folder, identity, index.count, shape))
    prefill(heard, CPU)
    return heard


class Errors(NamedTuple):
    """Relative errors: of each stage's map (the worst image), of the AT loss, and of the student's gradient of it."""

    maps: tuple[float, ...]
    loss: float
    gradient: float

    def worst(self, other: Errors) -> Errors:
        """The greater of each."""
        maps = tuple(max(pair) for pair in zip(self.maps, other.maps, strict=True))
        return Errors(maps, max(self.loss, other.loss), max(self.gradient, other.gradient))


@torch.no_grad()
def truth_of(teacher: nn.Module, images: Tensor) -> list[Tensor]:
    """The paper's maps [B, H W] of the teacher's stages, from the network as it is."""
    with Taps(teacher, choose_stages(teacher, images).stages) as taps:
        teacher(images)
    return [textbook_map(features) for features in taps.features]


def errors(student: nn.Module, batch: Batch, answer: TeacherOutput, truth: Sequence[Tensor]) -> Errors:
    """What is wrong with an answer for this student.

    Args:
        student: held still; a copy of it in training mode is run.
        batch: what both saw.
        answer: the remembered teacher's.
        truth: maps [B, H W] of each stage.
    """
    maps = [
        float((x.flatten(1) - y).norm(dim=1).max()) for x, y in zip(answer.maps(SUM_OF_SQUARES), truth, strict=True)
    ]
    loss, gradient = _ours(student, batch.images, answer)
    true_loss, true_gradient = _textbook(student, batch.images, truth)
    return Errors(
        tuple(maps),
        abs(loss - true_loss) / true_loss,
        float((gradient - true_gradient).norm() / true_gradient.norm()),
    )


def _ours(student: nn.Module, images: Tensor, answer: TeacherOutput) -> tuple[float, Tensor]:
    network, features = _run(student, images)
    losses = [map_distance(energy(x), y) for x, y in zip(features, answer.maps(SUM_OF_SQUARES), strict=True)]
    return _loss_and_gradient(torch.stack(losses).sum(), network)


def _textbook(student: nn.Module, images: Tensor, truth: Sequence[Tensor]) -> tuple[float, Tensor]:
    network, features = _run(student, images)
    return _loss_and_gradient(textbook_to_maps(features, truth), network)


def _run(student: nn.Module, images: Tensor) -> tuple[nn.Module, list[Tensor]]:
    network = copy.deepcopy(student).train().requires_grad_()
    with Taps(network, choose_stages(network, images).stages) as taps:
        network(images)
    return network, list(taps.features)


def _loss_and_gradient(loss: Tensor, network: nn.Module) -> tuple[float, Tensor]:
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return float(loss.detach()), parameters_to_vector(gradients)


def measure(student: nn.Module, heard: CachedTeacher, teacher: nn.Module, batches: Iterable[Batch]) -> Errors:
    """The worst over batches."""
    worst: Errors | None = None
    for batch in batches:
        found = errors(student, batch, heard(batch), truth_of(teacher, batch.images))
        worst = found if worst is None else worst.worst(found)
    if worst is None:
        raise ValueError("there are no batches to compare on.")
    return worst


def some_batches(data: Path, count: int, batch_size: int) -> tuple[ImageDataset, list[Batch]]:
    """The training images of a folder of 32-pixel images in augmented views, and the first batches of them."""
    loader, *_ = prepare_dataloaders(data, batch_size, augment=True, num_workers=0, image_size=32, augment_views=1)
    batches = [batch for batch, _ in zip(loader, range(count), strict=False)]
    return loader.dataset, batches


def students(data: Path, teacher: Path, output: Path, epochs: int = 10) -> dict[str, nn.Module]:
    """A ResNet-20 as drawn, after one epoch and at the end; trained where it has not been yet."""
    folder = output / "checkpoints"
    config = create_at_config(
        model="CifarResNet-20",
        data_dir=str(data),
        image_size=32,
        num_workers=0,
        epochs=epochs,
        lr=0.05,
        augment=True,
        augment_views=4,
        teacher_model=str(teacher),
        teacher_arch="CifarResNet-56",
        device="cpu",
        experiment_name="fidelity",
        resume="auto",
        save_freq=1,
        figure_freq=1000,
        save_dir=str(folder),
        log_dir=str(output / "logs"),
        cache_dir=str(output / "cache"),
    )
    train_at(config)
    torch.manual_seed(0)
    return {
        "as drawn": create_model("CifarResNet-20", 10),
        "after 1 epoch": load_model(folder / "fidelity_epoch_1.pth")["model"],
        f"after {epochs} epochs": load_model(folder / "fidelity_final.pth")["model"],
    }


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help="tar of CIFAR-10 as JPEG files, train/ and test/")
    parser.add_argument("--teacher", type=Path, required=True, help="state_dict of a CIFAR ResNet-56")
    parser.add_argument("--output", type=Path, default=Path("runs/fidelity"), help="where everything is kept")
    options = parser.parse_args(arguments)

    data = cifar_slice(options.archive, options.output)
    teacher = load_teacher_model(options.teacher, 10, "cpu")
    states = students(data, options.teacher, options.output)
    dataset, batches = some_batches(data, BATCHES, BATCH_SIZE)
    print(f"\n{processor()}, torch {torch.__version__}; {BATCHES} batches of {BATCH_SIZE}, the worst of them")
    with tempfile.TemporaryDirectory(dir=options.output) as folder:
        for way in WAYS:
            heard = remembered(teacher, dataset, Path(folder), way)
            target = f" (target {TARGET:g})" if way in HELD_TO_TARGET else ""
            print(f"\n## {way}{target}")
            for name, student in states.items():
                found = measure(student, heard, teacher, batches)
                maps = " ".join(f"{error:.1e}" for error in found.maps)
                print(f"  {name:16} maps {maps}   AT loss {found.loss:.1e}   gradient {found.gradient:.1e}")


if __name__ == "__main__":
    main()
