"""The order of an epoch that has as many images of each class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def balanced_order(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> list[int]:
    """As many samples as there are, in random order, with the same number of each class that has any.

    A small class is repeated: all of its samples come up before one of them comes up again. Of a large class there are
    some, others in every epoch. Where the number of samples is no multiple of that of the classes, randomly chosen
    classes have one more.

    Args:
        labels: int64 [N], the class of each sample.
        generator: decides all that is random.

    Returns:
        N positions in `labels`.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 0, 1])
        >>> sorted(labels[balanced_order(labels, np.random.default_rng(0))].tolist())
        [0, 0, 0, 1, 1, 1]
    """
    classes = np.unique(labels)
    counts = np.full(len(classes), len(labels) // max(1, len(classes)))
    counts[generator.permutation(len(classes))[: len(labels) - int(counts.sum())]] += 1
    drawn = [
        _repeated(np.flatnonzero(labels == label), count, generator)
        for label, count in zip(classes, counts.tolist(), strict=True)
    ]
    order: list[int] = generator.permutation(np.concatenate(drawn)).tolist() if drawn else []
    return order


def _repeated(samples: npt.NDArray[np.int64], count: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """`count` of the samples, each of them once before any of them again."""
    rounds = -(-count // len(samples))
    return np.concatenate([generator.permutation(samples) for _ in range(rounds)] or [samples])[:count]
