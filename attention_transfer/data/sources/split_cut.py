"""How a missing val or test split is cut from the training images."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attention_transfer.config import Config
from attention_transfer.data.sources.base import Sample
from attention_transfer.errors import DataError

AUTO_FRACTION = 0.15
MOST_IMAGES = 10_000
"""Of a split whose fraction was not given: more of them measure a network hardly better, and would train it better."""

_FEWEST_TO_CUT = 3
_MILLION = 10**6

CutFraction = float | Literal["auto"]


@dataclass(frozen=True)
class SplitCut:
    """How large the splits are that have no folder, and which images they get.

    Attributes:
        split_seed: of the choice of images.
        val_fraction: share of the training images of each class, between 0 and 1; 'auto': 0.15, but at most about
            10,000 images in all.
        test_fraction: likewise; 0: there is no test split.

    Raises:
        DataError: a fraction is out of range.
    """

    split_seed: int = 0
    val_fraction: CutFraction = "auto"
    test_fraction: CutFraction = "auto"

    def __post_init__(self) -> None:
        for name, value in (("val_fraction", self.val_fraction), ("test_fraction", self.test_fraction)):
            if value == "auto" or (value == 0 and name == "test_fraction"):
                continue
            if not isinstance(value, int | float) or not 0 < value < 1:
                raise DataError(f"{name} is {value!r}; it must be 'auto' or a part of 1 (0 for test: no test split).")

    @classmethod
    def of(cls, config: Config) -> SplitCut:
        """As the settings say."""
        return cls(config.split_seed, config.val_fraction, config.test_fraction)

    def roles(self, given: Sequence[str]) -> list[str]:
        """The splits that are to be cut, where the folder has those of `given`."""
        wanted = ["val"] if self.test_fraction == 0 else ["val", "test"]
        return [role for role in wanted if role not in given]

    def parts_per_million(self, role: str, images: int) -> int:
        """The share of a split of `images` training images; whole, so that every machine rounds alike."""
        fraction = self.val_fraction if role == "val" else self.test_fraction
        if fraction != "auto":
            return round(fraction * _MILLION)
        return min(round(AUTO_FRACTION * _MILLION), MOST_IMAGES * _MILLION // max(1, images))


def cut(
    samples: Sequence[Sample], roles: Sequence[str], how: SplitCut, folder: Path, classes: Sequence[str]
) -> dict[str, list[Sample]]:
    """Cut splits from training images, class by class, at least one image of each; what is left is 'train'.

    Which images are cut depends only on their relative paths and on the seed: an added image does not move others.

    Args:
        samples: the training images, in the order of their classes.
        roles: 'val', 'test' or both.
        how: their sizes and the seed.
        folder: of the training images, or their table, for the message.
        classes: names of the classes, for the message.

    Raises:
        DataError: a class has fewer than three images, or all would be cut.
    """
    parts: dict[str, list[Sample]] = {role: [] for role in ("train", *roles)}
    shares = {role: how.parts_per_million(role, len(samples)) for role in roles}
    for label, group in itertools.groupby(samples, key=lambda sample: sample.label):
        of_class = list(group)
        sizes = {
            role: max(1, (2 * share * len(of_class) + _MILLION) // (2 * _MILLION)) for role, share in shares.items()
        }
        if len(of_class) < _FEWEST_TO_CUT or sum(sizes.values()) >= len(of_class):
            raise DataError(_too_few(of_class, sizes, folder, classes[label]))
        drawn = iter(sorted(of_class, key=lambda sample: _lot(sample.relative, how.split_seed)))
        for role, size in sizes.items():
            parts[role] += itertools.islice(drawn, size)
        parts["train"] += drawn
    return {role: sorted(part, key=lambda sample: (sample.label, sample.relative)) for role, part in parts.items()}


def _too_few(of_class: Sequence[Sample], sizes: dict[str, int], source: Path, name: str) -> str:
    roles = " and ".join(sizes)
    is_table = source.is_file()
    where = f"The class {name} of {source}" if is_table else f"The class folder {source / name}"
    if len(of_class) < _FEWEST_TO_CUT:
        return (
            f"{where} has {len(of_class)} images, but {roles} must be cut from it: add images (at least "
            f"{_FEWEST_TO_CUT}), or give {roles} {'rows' if is_table else 'folders'}."
        )
    cut_off = " and ".join(f"{size} for {role}" for role, size in sizes.items())
    return (
        f"{where} has {len(of_class)} images, of which {cut_off} would be cut, so that none is left to train on: lower "
        "val_fraction or test_fraction."
    )


def set_aside(parts: Mapping[str, Sequence[Sample]], folder: Path, split_seed: int) -> str:
    """What was cut, and how to keep it, in a sentence for the log."""
    cut_off = {role: len(part) for role, part in parts.items() if role != "train"}
    images = sum(map(len, parts.values()))
    numbers = " and ".join(f"{number:,}" for number in cut_off.values())
    keep = "test_fraction=0 keeps those of test, without test results" if "test" in cut_off else ""
    change = " and ".join(f"{role}_fraction" for role in cut_off)
    return (
        f"{' and '.join(cut_off)} cut from {folder} with split_seed {split_seed}: {numbers} of its {images:,} images "
        f"are not trained on ({change} {'change' if len(cut_off) > 1 else 'changes'} that{'; ' if keep else ''}{keep})"
    )


def _lot(relative: str, split_seed: int) -> bytes:
    # A digest, because a library's random generator may change between releases.
    return hashlib.sha256(f"{split_seed}:{relative}".encode("utf-8", "surrogateescape")).digest()
