"""`make bench`: what attention transfer costs, side by side, in about two minutes. Run it alone.

The first arm of each table is what a plain implementation does; ratios below 1 are faster than it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer import compute_at_loss, create_model, prepare_dataloaders
from attention_transfer.attention import attention_loss
from attention_transfer.cli.digits import write_digits
from benchmarks.timing import processor, table, take_turns

SHAPES = ((64, 32), (128, 16), (256, 8), (512, 4))
"""Channels and side of ResNet18's stages at 128x128."""


def textbook(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The paper's expression, as the authors' code has it."""

    def at(x: Tensor) -> Tensor:
        return F.normalize(x.pow(2).mean(1).reshape(x.size(0), -1))

    return torch.stack([(at(s) - at(t)).pow(2).mean() for s, t in zip(student, teacher, strict=True)]).sum()


def loss_of_features(memory_format: torch.memory_format) -> dict[str, Callable[[], object]]:
    """Forward and backward of the AT loss alone, at the stages of ResNet18 and batch 32."""

    def stages(*, needs_gradient: bool) -> list[Tensor]:
        shapes = [torch.randn(32, c, s, s).contiguous(memory_format=memory_format) for c, s in SHAPES]
        return [x.requires_grad_(needs_gradient) for x in shapes]

    student, teacher = stages(needs_gradient=True), stages(needs_gradient=False)

    def arm(loss: Callable[[list[Tensor], list[Tensor]], Tensor]) -> Callable[[], object]:
        def run() -> None:
            for x in student:
                x.grad = None
            loss(student, teacher).backward()

        return run

    return {"textbook": arm(textbook), "ours": arm(attention_loss)}


def training_steps() -> dict[str, Callable[[], object]]:
    """A step of ResNet18 at 64x64, batch 32: without and with a live ResNet50, in either memory format."""
    images, labels = torch.rand(32, 3, 64, 64), torch.arange(32) % 10

    def arm(teacher: nn.Module | None, memory_format: torch.memory_format) -> Callable[[], object]:
        student = create_model("ResNet18", 10).to(memory_format=memory_format)
        if teacher is not None:
            teacher = teacher.to(memory_format=memory_format)
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9)
        x = images.contiguous(memory_format=memory_format)

        def run() -> None:
            optimizer.zero_grad()
            compute_at_loss(student, teacher, x, labels, {}).total.backward()
            optimizer.step()

        return run

    return {
        "no teacher, NCHW": arm(None, torch.contiguous_format),
        "no teacher, channels last (ours)": arm(None, torch.channels_last),
        "live teacher, NCHW": arm(create_model("ResNet50", 10), torch.contiguous_format),
        "live teacher, channels last (ours)": arm(create_model("ResNet50", 10), torch.channels_last),
    }


def loaders(folder: Path) -> dict[str, Callable[[], object]]:
    """An epoch of 1,257 digits at 64x64 in the main process, whole and augmented."""
    write_digits(folder)

    def arm(*, augment: bool) -> Callable[[], object]:
        train, *_ = prepare_dataloaders(folder, 32, augment, 0, image_size=64)
        return lambda: [images for images, _ in train]

    return {"whole images": arm(augment=False), "augmented": arm(augment=True)}


def help_pages() -> dict[str, Callable[[], object]]:
    """The command's --help, beside Python doing nothing."""

    def arm(*arguments: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *arguments], capture_output=True, check=True)

    return {"python -c pass": arm("-c", "pass"), "train --help": arm("-m", "attention_transfer", "train", "--help")}


def main() -> None:
    """Print the tables."""
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    table("AT loss, forward and backward, NCHW", take_turns(loss_of_features(torch.contiguous_format)))
    table("AT loss, forward and backward, channels last", take_turns(loss_of_features(torch.channels_last)))
    table("A training step", take_turns(training_steps(), rounds=7))
    with tempfile.TemporaryDirectory() as folder:
        table("An epoch of loading", take_turns(loaders(Path(folder)), rounds=5), "s")
    table("--help", take_turns(help_pages(), rounds=10), "s")


if __name__ == "__main__":
    main()
