"""The teacher as a network that runs on every batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from attention_transfer.data.batches import Batch
from attention_transfer.networks.input_shapes import TEACHER, refusing_misfits
from attention_transfer.teacher.base import TeacherOutput
from attention_transfer.teacher.runner import FrozenRunner


class OnlineTeacher:
    """Runs the teacher's network on every batch.

    Args:
        make_runner: makes the runner from the first batch of images [B, 3, H, W], on which its stages are found.
    """

    def __init__(self, make_runner: Callable[[Tensor], FrozenRunner]) -> None:
        self._make_runner = make_runner
        self._runner: FrozenRunner | None = None

    def __call__(self, batch: Batch) -> TeacherOutput:
        """The teacher's signals for `batch`, images [B, 3, H, W], which must be on its device."""
        if self._runner is None:
            self._runner = self._make_runner(batch.images)
        with refusing_misfits(self._runner.network, batch.images, TEACHER):
            return self._runner.run(batch.images, batch.labels, whole=True)
