"""Images per class and split, as numbers and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler, WeightedRandomSampler

from attention_transfer.data.balance import IMBALANCED, class_counts
from attention_transfer.data.loading.sampler import EpochBatchSampler

ClassCounts = dict[str, dict[str, int]]
"""Images by class and split: {"ant": {"train": 87, "val": 18}, ...}; every class has the same splits."""

_MOST_ROWS = 20
_EXTREMES = 3
_OF_ALL_IMAGES = (SequentialSampler, RandomSampler, DistributedSampler, WeightedRandomSampler)


def images_per_class(loaders: Mapping[str, object], names: Sequence[str]) -> ClassCounts | None:
    """Count the images of each class in each split whose labels are known without reading images (see `class_counts`).

    Args:
        loaders: by split.
        names: of all classes, by number.

    Returns:
        the counts of every class in each such split; None if there is none.
    """
    known = {split: class_counts(loader) for split, loader in loaders.items() if _draws_from_all(loader)}
    splits = {
        split: counts
        for split, counts in known.items()
        if counts and min(counts) >= 0 and max(counts) < len(names)  # else training raises an error about the labels
    }
    if not splits:
        return None
    return {name: {split: counts.get(label, 0) for split, counts in splits.items()} for label, name in enumerate(names)}


def _draws_from_all(loader: object) -> bool:
    """Whether every image of the data set may be drawn; a user's own sampler may leave some out."""
    sampler = getattr(loader, "batch_sampler", None)
    if type(sampler) is BatchSampler:
        return isinstance(sampler.sampler, _OF_ALL_IMAGES)
    return isinstance(sampler, EpochBatchSampler)


def class_table(counts: ClassCounts) -> list[str]:
    """The lines of a table with a row for each class and a column for each split.

    For more than 20 classes it has the largest and the smallest, the median and the sum. Where the largest class of
    the first split, which is train, has five times as many images as the smallest, a last line says how many times.

    Example:
        >>> print("\\n".join(class_table({"ant": {"train": 87, "val": 18}, "bee": {"train": 9, "val": 0}})))
        images per class  train  val
        ant                  87   18
        bee                   9    0
        sum of 2             96   18
        the largest class of train has 9.67 times the images of the smallest
    """
    splits = list(next(iter(counts.values())))
    rows = [[name, *of_class.values()] for name, of_class in counts.items()]
    if len(rows) > _MOST_ROWS:
        rows = _extremes(counts, splits[0])
    total = [f"sum of {len(counts):,}", *(sum(of_class[split] for of_class in counts.values()) for split in splits)]
    lines = _aligned([["images per class", *splits], *([_cell(value) for value in row] for row in [*rows, total])])
    ratio = _ratio([of_class[splits[0]] for of_class in counts.values()])
    if ratio >= IMBALANCED:
        lines.append(f"the largest class of {splits[0]} has {ratio:.3g} times the images of the smallest")
    return lines


def _extremes(counts: ClassCounts, first: str) -> list[list[object]]:
    ordered = sorted(counts.items(), key=lambda item: -item[1][first])
    most = [[f"most: {name}", *of_class.values()] for name, of_class in ordered[:_EXTREMES]]
    fewest = [[f"fewest: {name}", *of_class.values()] for name, of_class in ordered[-_EXTREMES:]]
    splits = ordered[0][1]
    middle = ["median", *(median(of_class[split] for of_class in counts.values()) for split in splits)]
    return [*most, *fewest, middle]


def _ratio(images: Sequence[int]) -> float:
    """The largest number over the smallest that is not 0; 1 where all are 0."""
    present = [count for count in images if count]
    return max(present) / min(present) if present else 1.0


def _cell(value: object) -> str:
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    ]
