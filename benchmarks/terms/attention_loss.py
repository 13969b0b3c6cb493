"""What the AT loss costs by itself: `python -m benchmarks.terms.attention_loss`, on OMP_NUM_THREADS threads.

Run it alone. The first arm of each table is the paper's expression as the authors' code has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.features.maps import attention_map, energy
from attention_transfer.losses.attention import attention_loss
from attention_transfer.losses.map_distance import map_distance
from benchmarks.measuring.timing import processor, table, take_turns

SHAPES = ((64, 32), (128, 16), (256, 8), (512, 4))
"""Channels and side of ResNet18's stages at 128x128."""

BATCH = 32

Arms = dict[str, Callable[[], object]]


def textbook_map(x: Tensor) -> Tensor:
    """The attention map [B, H W] in the authors' words."""
    return F.normalize(x.pow(2).mean(1).reshape(x.size(0), -1))


def textbook(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The paper's expression, as the authors' code has it."""
    return textbook_to_maps(student, [textbook_map(x) for x in teacher])


def textbook_to_maps(student: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """The same where the teacher's maps [B, H W] are known."""
    return torch.stack([(textbook_map(x) - y).pow(2).mean() for x, y in zip(student, maps, strict=True)]).sum()


def ours_to_maps(student: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    """Our loss where the teacher's maps [B, H, W] are known."""
    return torch.stack([map_distance(energy(x), y) for x, y in zip(student, maps, strict=True)]).sum()


def loss_of_features(memory_format: torch.memory_format) -> Arms:
    """Forward and backward of the AT loss, the teacher's maps made of its features."""
    student, teacher = _stages(memory_format), _stages(memory_format)
    return {
        "textbook": _step(student, lambda: textbook(student, teacher)),
        "ours": _step(student, lambda: attention_loss(student, teacher)),
    }


def loss_of_student(memory_format: torch.memory_format) -> Arms:
    """Forward and backward of the AT loss where the teacher's maps lie ready: what the student's side costs."""
    student = _stages(memory_format)
    maps = [attention_map(x) for x in _stages(memory_format)]
    rows = [x.flatten(1) for x in maps]
    return {
        "textbook": _step(student, lambda: textbook_to_maps(student, rows)),
        "ours": _step(student, lambda: ours_to_maps(student, maps)),
    }


def _stages(memory_format: torch.memory_format) -> list[Tensor]:
    return [torch.randn(BATCH, c, side, side).contiguous(memory_format=memory_format) for c, side in SHAPES]


def _step(student: Sequence[Tensor], loss: Callable[[], Tensor]) -> Callable[[], object]:
    needing = [x.requires_grad_() for x in student]
    return lambda: torch.autograd.grad(loss(), needing)


def main() -> None:
    """Print the tables."""
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {BATCH}")
    for name, memory_format in (("NCHW", torch.contiguous_format), ("channels last", torch.channels_last)):
        table(f"AT loss, forward and backward, {name}", take_turns(loss_of_features(memory_format)))
        table(f"The same to maps that lie ready, {name}", take_turns(loss_of_student(memory_format)))


if __name__ == "__main__":
    main()
