"""Random numbers as a function of (seed, view, index), for every part of augmentation its own."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_U64 = np.uint64

CROP_AND_COLOURS, SHIFT, ERASING, TRIVIAL, MIXING = range(5)
"""The streams of the parts: switching one on moves no other."""


def random_numbers(
    seed: int, view: int, indices: Sequence[int], count: int = 10, stream: int = CROP_AND_COLOURS
) -> list[list[float]]:
    """Numbers in [0, 1) for each index: the outputs count * index + 1 to count * index + count of SplitMix64.

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") computes its n-th
    output from n alone, without sequential state.

    Args:
        seed: of the views.
        view: number of the view.
        indices: positions of the images in the data set.
        count: numbers for each.
        stream: of the part that uses them.
    """
    before = np.array(indices, dtype=_U64).reshape(-1, 1) * _U64(count)
    state: npt.NDArray[np.uint64] = np.add(before, np.arange(1, count + 1, dtype=_U64))
    state *= _U64(0x9E3779B97F4A7C15)
    state += _start(seed, view, stream)
    state ^= state >> _U64(30)
    state *= _U64(0xBF58476D1CE4E5B9)
    state ^= state >> _U64(27)
    state *= _U64(0x94D049BB133111EB)
    state ^= state >> _U64(31)
    numbers: list[list[float]] = ((state >> _U64(11)) * 2.0**-53).tolist()
    return numbers


@functools.lru_cache(maxsize=64)
def _start(seed: int, view: int, stream: int) -> np.uint64:
    # the first stream has no spawn key, as in version 0.1
    entropy = np.random.SeedSequence((seed, view), spawn_key=(stream,) if stream else ())
    (start,) = entropy.generate_state(1, _U64)
    return np.uint64(start)
