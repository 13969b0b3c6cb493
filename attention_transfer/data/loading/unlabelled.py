"""The order of images without labels, of which each batch of labelled images has some more."""

from __future__ import annotations

import functools

import numpy as np


class UnlabelledOrder:
    """Which unlabelled images come beside the labelled ones: each comes up once before any comes up again.

    The order goes on from epoch to epoch, as an epoch is one pass over the labelled images, and is a function of the
    seed alone.

    Args:
        count: of the images, at least 1.
        ratio: unlabelled images to each labelled one, above 0.
        seed: of the order.
    """

    def __init__(self, count: int, ratio: float, seed: int = 0) -> None:
        self.count = count
        self.ratio = ratio
        self.seed = seed

    def beside(self, labelled: int) -> int:
        """How many come in a batch with so many labelled images."""
        return round(self.ratio * labelled)

    def taken(self, begin: int, number: int) -> list[int]:
        """The images from place `begin` on in the endless order, as positions from 0 to count - 1."""
        places = range(begin, begin + number)
        return [int(_permutation(self.seed, place // self.count, self.count)[place % self.count]) for place in places]


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, turn: int, count: int) -> np.ndarray:
    # the spawn key separates these orders from those of the labelled images
    entropy = np.random.SeedSequence((seed, turn), spawn_key=(1,))
    permutation: np.ndarray = np.random.default_rng(entropy).permutation(count)
    return permutation
