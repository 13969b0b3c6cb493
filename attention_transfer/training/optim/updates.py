"""Steps of the optimizer over the gradients of one batch or of several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from attention_transfer.distributed import Runtime


def _nothing() -> None:
    """Nothing happens after a step."""


@dataclass(frozen=True)
class UpdateRule:
    """How gradients become steps of the optimizer.

    Attributes:
        accumulate: batches whose gradients make one step; the last group of an epoch may be smaller.
        clip_grad: the greatest norm of all gradients together; None clips nothing.
        after: called after each step.
    """

    accumulate: int = 1
    clip_grad: float | None = None
    after: Callable[[], None] = _nothing


class Updates:
    """Steps of the optimizer, each over the gradients of a group of batches.

    Each batch's loss, a mean over its images, counts in the group by its share of the images: the gradients are those
    of the mean over all of them, as one larger batch would give it. What is computed from a batch as a whole (the
    statistics of batch normalisation, a correlation over the batch) is computed from the smaller ones.

    Args:
        optimizer: of all trained parameters.
        runtime: gives number format and processes.
        rule: see `UpdateRule`.
        student: wrapped by the runtime.
        alone: trained parameters outside the student.

    Attributes:
        waiting: batches whose gradients wait for the step of their group.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        runtime: Runtime,
        rule: UpdateRule,
        student: nn.Module,
        alone: Iterable[nn.Parameter] = (),
    ) -> None:
        self.waiting = 0
        self._optimizer = optimizer
        self._runtime = runtime
        self._rule = rule
        self._student = student
        self._alone = list(alone)
        self._first = self._images = 0

    @contextmanager
    def batch(self, images: int, *, is_last: bool) -> Iterator[float]:
        """A batch, whose gradients are computed inside; the last batch of a group then steps the optimizer.

        Args:
            images: in the batch, over all processes.
            is_last: no batch follows in this epoch.

        Yields:
            the factor of the batch's mean loss.
        """
        if not self.waiting:
            self._optimizer.zero_grad(set_to_none=True)
            self._first, self._images = images, 0
        closes = is_last or self.waiting + 1 >= self._rule.accumulate
        with nullcontext() if closes else self._runtime.no_sync(self._student):
            yield images / self._expected()
        self.waiting += 1
        self._images += images
        if closes:
            self._step()

    def finish(self) -> None:
        """Step the optimizer for a last group that nobody knew to be the last."""
        if self.waiting:
            self._runtime.average_gradients(p for p in self._student.parameters() if p.requires_grad)
            self._step()

    def _expected(self) -> int:
        """Images in the group, if every batch has as many as its first."""
        return self._first * self._rule.accumulate

    def _step(self) -> None:
        if self._images != self._expected():
            groups = self._optimizer.param_groups
            gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(gradients, self._expected() / self._images)
        self._runtime.update(self._optimizer, self._alone, self._rule.clip_grad)
        self.waiting = 0
        self._rule.after()
