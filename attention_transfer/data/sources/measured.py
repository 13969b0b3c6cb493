"""Choosing the images of a folder on which a trained network is evaluated."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Literal

from attention_transfer.data.sources.base import Sample
from attention_transfer.data.sources.folder import Splits, find_splits, find_unsplit
from attention_transfer.data.sources.split_cut import SplitCut
from attention_transfer.errors import DataError

Choice = Literal["test", "val", "train", "all"]


@dataclass(frozen=True)
class Measured:
    """The images for an evaluation.

    Attributes:
        classes: names of the folder's classes.
        samples: the images.
        what: their description, such as 'the test split, 59 images cut from photos'.
    """

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    what: str


def choose_images(
    data_dir: str | os.PathLike[str], choice: Choice | None, how: SplitCut, *, is_learned_from: bool
) -> Measured:
    """The images that a choice names; without one, those that the network was not trained on.

    These are the test split, if the folder has one or the network was trained on this folder (then as training cut
    it). Any other folder of class folders is new to the network, and all its images are used.

    Args:
        data_dir: a folder with splits, or a folder of class folders.
        choice: a split, or all; None: as above.
        how: splits that have no folder are cut.
        is_learned_from: whether the network was trained on the folder's train split.

    Raises:
        DataError: the folder is not what `find_splits` expects; or nothing is chosen, and it holds train/ but no
            test/, and the network was not trained on it; or the split has no image with a label.
    """
    unsplit = find_unsplit(data_dir)
    is_new = choice is None and not is_learned_from
    if unsplit is not None and (choice == "all" or is_new):
        return _all(unsplit, data_dir, is_learned_from)
    splits = find_splits(data_dir, **asdict(how))
    if choice == "all":
        return _all(splits, data_dir, is_learned_from)
    if is_new and "test" in splits.cut:
        raise DataError(
            f"{data_dir} holds train/ but no test/, and the network was not trained on it: name the images to measure "
            "on with --split (train, val, all, or test for the part that is cut from train), or name another folder."
        )
    return _one_split(splits, choice or "test", data_dir, how.split_seed)


def _all(splits: Splits, data_dir: str | os.PathLike[str], is_learned_from: bool) -> Measured:
    samples = splits.train + splits.val + splits.test
    seen = ", from most of which the network has learned" if is_learned_from else ""
    return Measured(splits.classes, samples, f"all {len(samples)} images of {data_dir}{seen}")


def _one_split(splits: Splits, role: str, data_dir: str | os.PathLike[str], split_seed: int) -> Measured:
    samples: tuple[Sample, ...] = getattr(splits, role)
    if role == "test" and not splits.is_tested:
        raise DataError(f"{data_dir} has no test split, as test_fraction is 0; name another split with --split.")
    if not samples:
        raise DataError(f"the {role} split of {data_dir} has no labelled image; name another with --split.")
    if role in splits.cut:
        where = f"cut from {data_dir} with split_seed {split_seed}"
    elif role == "train" and splits.cut:
        where = f"of {data_dir} without those cut for {' and '.join(splits.cut)} with split_seed {split_seed}"
    else:
        where = f"of {data_dir}"
    return Measured(splits.classes, samples, f"the {role} split, {len(samples)} images {where}")
