"""Class counts, where the labels are known without reading images, and the warning about imbalance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Subset

from attention_transfer.data.loading.relabelled import Relabelled
from attention_transfer.features.gradients import IGNORED_LABEL as UNLABELLED

IMBALANCED = 5
"""Ratio of the largest class to the smallest from which accuracy alone is misleading."""


def class_counts(loader: object) -> dict[int, int] | None:
    """Images per class of a loader's data set, by the loader's numbers, from its `targets`, also inside `Subset`s.

    torchvision's data sets, and ours, have `targets`: a list, array or tensor of one class number an image.

    Returns:
        the number of images of each class that has any, by its number; None where the data set has no
        `targets`, or changes its labels when it is read (`target_transform`).
    """
    dataset: Any = getattr(loader, "dataset", None)
    chosen: np.ndarray[Any, Any] | None = None
    while isinstance(dataset, Subset):
        indices = np.asarray(dataset.indices, dtype=np.int64)
        chosen = indices if chosen is None else indices[chosen]
        dataset = dataset.dataset
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None
    try:
        labels = np.asarray(targets)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(dataset):
            return None
        labels = labels if chosen is None else labels[chosen]
        labels = labels[labels != UNLABELLED]
        if isinstance(loader, Relabelled):
            labels = loader.positions.numpy()[labels]
    except (TypeError, ValueError, IndexError):
        return None  # labels of another kind, such as boxes
    return dict(sorted(Counter(labels.tolist()).items()))


def inverse_frequency_weights(images: Sequence[int]) -> tuple[float, ...]:
    """Weights of classes by the inverse of their numbers of images, 1 on average over the classes.

    Args:
        images: of each class, at least 1.

    Example:
        >>> inverse_frequency_weights([30, 10, 30])
        (0.6, 1.8, 0.6)
    """
    mean = sum(1 / count for count in images) / len(images)
    return tuple(1 / count / mean for count in images)


def imbalance_warning(counts: Mapping[int, int], names: Sequence[str]) -> str | None:
    """The warning for training images of which the largest class has at least five times as many as the smallest.

    Args:
        counts: images by class number, see `class_counts`.
        names: of the classes; classes without a name are called by their numbers.

    Returns:
        a sentence with both classes and their counts; None where the classes are not imbalanced.

    Example:
        >>> print(imbalance_warning({0: 6, 1: 180}, ["cracked", "sound"]))
        the classes are imbalanced: of the training images 180 are 'sound' and 6 are 'cracked', 30 to 1; look at the \
balanced accuracy (the mean of recall over the classes), because plain accuracy is high for a network that always \
predicts 'sound'.
    """
    if not counts:
        return None
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[most] < IMBALANCED * counts[least]:
        return None
    rare, common = (repr(names[label]) if 0 <= label < len(names) else str(label) for label in (least, most))
    return (
        f"the classes are imbalanced: of the training images {counts[most]} are {common} and {counts[least]} are "
        f"{rare}, {counts[most] / counts[least]:.3g} to 1; look at the balanced accuracy (the mean of recall over the "
        f"classes), because plain accuracy is high for a network that always predicts {common}."
    )
