"""What blocks of training measured, and how sure their ratio is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

Step = tuple[int, float]
"""How many images a step trained on, and its loss."""

RESAMPLES = 10_000


class Block(NamedTuple):
    """Some steps of training: images trained on, seconds they took in all, loss of each step."""

    images: int
    seconds: float
    losses: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


class Arm:
    """One way to train, run in blocks, so that several can take turns in one process.

    A block goes on where the last one ended, with a new epoch after the end of one; what an epoch costs to start is in
    the time. Where a loader has workers, let a block be whole epochs: after a block that ends inside an epoch they
    load on, for nothing, while the next arm is timed. Each arm needs networks of its own, because hooks and memory
    format stay on them.

    Args:
        name: as the table has it.
        epoch: starts an epoch, and gives (images, loss) after each of its steps.
    """

    def __init__(self, name: str, epoch: Callable[[], Iterator[Step]]) -> None:
        self.name = name
        self._steps = _endless(epoch)

    def block(self, batches: int) -> Block:
        """The next `batches` steps, timed.

        Raises:
            ValueError: an epoch has no steps at all.
        """
        began = time.perf_counter()
        steps = list(islice(self._steps, batches))
        seconds = time.perf_counter() - began
        if len(steps) < batches:
            raise ValueError(f"{self.name}: an epoch without a batch; its loader is empty.")
        images, losses = zip(*steps, strict=True)
        return Block(sum(images), seconds, losses)


def _endless(epoch: Callable[[], Iterator[Step]]) -> Iterator[Step]:
    empty = False
    while not empty:
        empty = True
        for step in epoch():
            empty = False
            yield step


class Interval(NamedTuple):
    """A median, and the bounds between which it lies with 95 % confidence."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio_interval(mine: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Interval:
    """The median of the ratios of pairs, with a 95 % interval from a percentile bootstrap of the pairs.

    Efron & Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.

    Args:
        mine: one figure a block, such as images a second.
        theirs: the other arm's figures of the same rounds, in the same order.
        seed: of the resampling; the same figures always give the same interval.

    Raises:
        ValueError: the two differ in length, there are fewer than two pairs, or a figure is not above 0.

    Example:
        >>> ratio_interval([2.0, 4.2, 6.0], [1.0, 2.0, 3.0]).median
        2.0
    """
    if len(mine) != len(theirs) or len(mine) < 2:
        raise ValueError(f"{len(mine)} and {len(theirs)} figures; a ratio needs two or more, in pairs.")
    if not min(*mine, *theirs) > 0:
        raise ValueError(f"the smallest figure is {min(*mine, *theirs)}; a ratio needs figures above 0.")
    ratios = np.array(mine) / np.array(theirs)
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975)).tolist()
    return Interval(float(np.median(ratios)), low, high)
