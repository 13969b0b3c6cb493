"""A teacher is a thing that answers; the training loop knows no more about it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from attention_transfer.data.batches import Batch


class TeacherOutput(NamedTuple):
    """What a teacher says of a batch.

    Attributes:
        maps: the attention maps [B, H, W] of each stage at the teacher's own resolution, up to a factor an image.
        logits: [B, K], or None where there is no teacher, or nobody asked it for logits.
        coverage: for each stage [B, H, W], 1 where the map is known, 0 where it is not; None: known everywhere.
    """

    maps: tuple[Tensor, ...]
    logits: Tensor | None
    coverage: tuple[Tensor, ...] | None = None


class Teacher(Protocol):
    """Anything that answers a batch."""

    def __call__(self, batch: Batch) -> TeacherOutput:
        """What this teacher says of the very pixels in `batch`."""
        ...


class NoTeacher:
    """Training without a teacher: the answer is silence."""

    def __call__(self, batch: Batch) -> TeacherOutput:
        """No maps and no logits."""
        return TeacherOutput((), None)
