"""A teacher is a callable from a batch to its signals; the training loop depends on nothing else."""

from __future__ import annotations

from typing import Protocol

from attention_transfer.data.batches import Batch
from attention_transfer.features.signals import TeacherOutput

__all__ = ["NoTeacher", "Teacher", "TeacherOutput"]


class Teacher(Protocol):
    """Anything that can be called with a batch: a network, a cache around one, or no teacher at all."""

    def __call__(self, batch: Batch) -> TeacherOutput:
        """The teacher's signals for the images [B, 3, H, W] of `batch`: maps [B, h, w] of each stage, logits [B, K]."""
        ...


class NoTeacher:
    """Training without a teacher."""

    def __call__(self, batch: Batch) -> TeacherOutput:
        """No signals."""
        return TeacherOutput()
