"""What beta means in each reduction of the attention loss: `python -m benchmarks.terms.scale`.

On a batch of real images, for a student as drawn and after a few steps with beta = 1000 in 'mean': the loss of each
stage, the weighted loss beside cross-entropy, the norms of their gradients by the student's weights, and the beta that
makes the gradient as long as that of 1000 in 'mean'. About two minutes, with CIFAR-10 and a ResNet-56 of ../shared, or
with a folder of images and a teacher of your own: --data, --teacher, --student.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from attention_transfer import compute_at_loss, create_model, load_teacher_model, prepare_dataloaders
from attention_transfer.losses.map_distance import Reduction
from attention_transfer.losses.total import Losses
from benchmarks.arms.benchmark_data import cifar_slice

BETA, BATCH, STEPS = 1e3, 128, 60
SHARED = Path(__file__).resolve().parents[2] / "shared"


class Scale(NamedTuple):
    """The attention loss in one reduction.

    Attributes:
        stages: its part of each pair of stages, unweighted.
        loss: their sum, unweighted.
        gradient: the norm of its gradient by the student's weights.
    """

    stages: tuple[float, ...]
    loss: float
    gradient: float


def scales(student: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Scale]:
    """The scale of each reduction, by its name, and of cross-entropy, which has no stages.

    Args:
        student: in train mode; its running statistics change.
        teacher: in eval mode.
        images: [B, 3, H, W].
        labels: [B].
    """
    found = {}
    for reduction in get_args(Reduction):
        losses = compute_at_loss(student, teacher, images, labels, {"attention_reduction": reduction})
        stages = tuple(stage.item() for stage in losses.per_stage)
        found[reduction] = Scale(stages, losses.attention.item(), gradient_norm(losses.attention, student))
    found["cross-entropy"] = Scale((), losses.classification.item(), gradient_norm(losses.classification, student))
    return found


def gradient_norm(loss: Tensor, network: nn.Module) -> float:
    """The L2 norm of a loss's gradient by all weights of a network."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
    return float(parameters_to_vector(gradients).norm())


def equal_beta(of: Scale, mean: Scale) -> float:
    """The beta that makes a gradient as long as `BETA` makes that of 'mean'."""
    return BETA * mean.gradient / of.gradient


def train(student: nn.Module, teacher: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Some steps of SGD on cross-entropy + `BETA` AT, in 'mean'."""
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    for images, labels in batches:
        losses: Losses = compute_at_loss(student, teacher, images, labels, {"beta": BETA})
        optimizer.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def print_scales(title: str, found: dict[str, Scale]) -> None:
    """A table in Markdown, as docs/attention.md has it."""
    print(f"\n{title}\n")
    print(f"| reduction | AT by stage | AT | {BETA:g} AT | gradient of {BETA:g} AT | beta of equal gradient |")
    print("|---|---|---|---|---|---|")
    for name, scale in found.items():
        if name != "cross-entropy":
            stages = ", ".join(f"{stage:.2g}" for stage in scale.stages)
            print(
                f"| {name} | {stages} | {scale.loss:.3g} | {BETA * scale.loss:.3g} | {BETA * scale.gradient:.3g} "
                f"| {equal_beta(scale, found['mean']):.3g} |"
            )
    of_labels = found["cross-entropy"]
    print(f"| (cross-entropy) | | | {of_labels.loss:.3g} | {of_labels.gradient:.3g} | |")


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of images, instead of a part of CIFAR-10")
    parser.add_argument("--teacher", type=Path, default=SHARED / "weights" / "cifar10-jpeg-resnet56.pth")
    parser.add_argument("--student", default="CifarResNet-20", help="a network's name")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="where the part of CIFAR-10 is put")
    options = parser.parse_args(arguments)

    data = options.data or cifar_slice(SHARED / "data" / "cifar10-jpeg.tar.xz", options.output)
    loader, *_ = prepare_dataloaders(data, BATCH, augment=True, num_workers=0, image_size=options.image_size)
    classes = len(loader.dataset.classes)
    torch.manual_seed(0)
    teacher = load_teacher_model(options.teacher, classes, "cpu")
    student = create_model(options.student, classes).train()
    batches = [(batch.images, batch.labels) for _ in range(STEPS) for batch in loader][: STEPS + 1]
    first, rest = batches[0], batches[1:]
    print_scales(f"{options.student} as drawn, a batch of {BATCH}", scales(student, teacher, *first))
    train(student, teacher, rest)
    print_scales(f"after {STEPS} steps with beta {BETA:g} in 'mean'", scales(student, teacher, *first))


if __name__ == "__main__":
    main()
