"""A teacher is a callable: a batch in, its signals out; the training loop knows no more about it."""

from __future__ import annotations

from typing import Protocol

from attention_transfer.data.batches import Batch
from attention_transfer.features.signals import TeacherOutput

__all__ = ["NoTeacher", "Teacher", "TeacherOutput"]


class Teacher(Protocol):
    """Anything that can be called with a batch: a network, a cache around one, or nobody."""

    def __call__(self, batch: Batch) -> TeacherOutput:
        """The teacher's signals for the very pixels in `batch`."""
        ...


class NoTeacher:
    """Training without a teacher."""

    def __call__(self, batch: Batch) -> TeacherOutput:
        """No signals."""
        return TeacherOutput()
