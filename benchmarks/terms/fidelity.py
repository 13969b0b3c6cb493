"""How near each remembered loss term is to the live teacher's: `python -m benchmarks.terms.fidelity`.

    python -m benchmarks.terms.fidelity --archive cifar10-jpeg.tar.xz --teacher cifar10-jpeg-resnet56.pth

trains a ResNet-20 on 2,000 images of CIFAR-10, and holds it still as drawn, after one epoch and at the end. On the same
batches, the user's own network in fp32, nothing folded, is the truth; the remembered answers, read back from a cache on
disk with maps in float16, are compared with it: the term's value, and the student's gradient of it (relative L2), the
worst of the batches. Target: 1e-3. About ten minutes.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from attention_transfer import load_teacher_model, prepare_dataloaders
from attention_transfer.config import Config, resolve_config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import Runtime
from attention_transfer.losses.total import default_terms, needs_of_teacher
from attention_transfer.teacher.base import Teacher
from attention_transfer.teacher.build import build_teachers, make_teacher
from attention_transfer.teacher.cache.prefill import prefill
from attention_transfer.teacher.cache.teacher import CachedTeacher
from attention_transfer.training.criterion.criterion import Criterion
from benchmarks.arms.benchmark_data import cifar_slice
from benchmarks.fidelity import students
from benchmarks.measuring.timing import processor
from benchmarks.terms.settings import TERMS

TARGET = 1e-3
BATCHES = 4


class Error(NamedTuple):
    """Relative errors of a term: of its value, and of the student's gradient of it."""

    loss: float
    gradient: float


def errors(
    settings: Mapping[str, Any],
    data: Path,
    teacher: nn.Module,
    states: Mapping[str, nn.Module],
    cache: Path,
    batches: int = BATCHES,
) -> dict[str, Error]:
    """The worst error of a term over some batches, for each student.

    Args:
        settings: of the loss.
        data: a folder of images of 32 pixels.
        teacher: in eval mode, on the CPU.
        states: students by name, which are left unchanged.
        cache: folder of the caches.
        batches: how many to compare on.

    Raises:
        ValueError: an answer was not remembered.
    """
    config = _config(settings, cache)
    loader, *_ = prepare_dataloaders(data, 128, augment=True, num_workers=0, image_size=32, augment_views=1)
    some = [batch for batch, _ in zip(loader, range(batches), strict=False)]
    runtime = Runtime(torch.device("cpu"))
    needs = needs_of_teacher(default_terms(config))
    with closing(build_teachers(config, teacher, loader, None, runtime, needs)) as remembered:
        heard = remembered.train
        if not isinstance(heard, CachedTeacher) or heard.cache is None:
            raise ValueError(f"the teacher is not remembered with {dict(settings)}.")
        prefill(heard, runtime.device)
        heard.hits = heard.misses = 0
        live = make_teacher(teacher, config, runtime, needs)
        found = {name: _worst(config, student, heard, live, some) for name, student in states.items()}
        if heard.misses:
            raise ValueError(f"{heard.misses} answers were not read from the cache.")
    return found


def _config(settings: Mapping[str, Any], cache: Path) -> Config:
    fixed = {"teacher_precision": "fp32", "precision": "fp32", "map_precision": "fp16", "teacher_cache": "on"}
    return resolve_config({**fixed, **settings, "epochs": 10, "cache_dir": str(cache), "device": "cpu"})


def _worst(config: Config, student: nn.Module, heard: Teacher, live: Teacher, batches: Sequence[Batch]) -> Error:
    pairs = []
    for batch in batches:
        (loss, gradient), (true_loss, true_gradient) = (_term(config, student, each, batch) for each in (heard, live))
        error = float((gradient - true_gradient).norm() / true_gradient.norm())
        pairs.append(Error(abs(loss - true_loss) / true_loss, error))
    return Error(*(max(column) for column in zip(*pairs, strict=True)))


def _term(config: Config, student: nn.Module, teacher: Teacher, batch: Batch) -> tuple[float, Tensor]:
    """The term's value without its weight, and the gradient of it by the weights of a copy of the student."""
    network = copy.deepcopy(student).train().requires_grad_()
    with closing(Criterion(config, teacher, Runtime(torch.device("cpu")))) as criterion:
        losses = criterion(network, batch)
    loss = losses.kd if config.alpha > 0 else losses.attention
    weights = list(network.parameters())
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    return loss.item(), parameters_to_vector(gradients)


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help="tar of CIFAR-10 as JPEG files, train/ and test/")
    parser.add_argument("--teacher", type=Path, required=True, help="state_dict of a CIFAR ResNet-56")
    parser.add_argument("--output", type=Path, default=Path("runs/fidelity"), help="where everything is kept")
    parser.add_argument("--epochs", type=int, default=10, help="of the student")
    options = parser.parse_args(arguments)

    data = cifar_slice(options.archive, options.output)
    teacher = load_teacher_model(options.teacher, 10, "cpu")
    states = students(data, options.teacher, options.output, options.epochs)
    print(f"\n{processor()}, torch {torch.__version__}; {BATCHES} batches of 128, the worst of them; target {TARGET:g}")
    print(f"{'':34} {'  '.join(f'{name:>19}' for name in states)}\n{'':34} {'     loss  gradient  ' * len(states)}")
    for name, settings in TERMS.items():
        with tempfile.TemporaryDirectory(dir=options.output) as cache:
            found = errors(settings, data, teacher, states, Path(cache))
        print(f"{name:34} {'  '.join(f'{error.loss:9.1e} {error.gradient:9.1e}' for error in found.values())}")


if __name__ == "__main__":
    main()
