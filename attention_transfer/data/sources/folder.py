"""The splits, classes and samples of a data folder, found without decoding an image."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attention_transfer.data.sources.base import Sample
from attention_transfer.data.sources.image_files import begins_like_an_image, image_suffixes, in_words, suffix_of
from attention_transfer.data.sources.listing import files_below, visible_entries, visible_folders
from attention_transfer.data.sources.split_cut import CutFraction, SplitCut, cut, set_aside
from attention_transfer.data.sources.split_folders import EXPECTED, SplitFolders, find_split_folders
from attention_transfer.data.sources.split_names import means_unlabelled
from attention_transfer.data.sources.table import is_table, read_table
from attention_transfer.errors import DataError

logger = logging.getLogger(__name__)

_LISTED = 10


@dataclass(frozen=True)
class Splits:
    """The images of a data folder, each split in the order of classes and then of relative paths.

    Attributes:
        classes: the names of the folders in train, sorted.
        train: at least one of every class.
        val: of some or all classes.
        test: of some or all classes; empty where the folder has a test split without labels.
        cut: the splits that have no folder and were cut from train.
        is_tested: whether there is a test split; not where it has no folder, and test_fraction is 0.
    """

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]
    cut: tuple[str, ...] = ()
    is_tested: bool = True


def find_splits(
    data_dir: str | os.PathLike[str],
    split_seed: int = 0,
    *,
    val_fraction: CutFraction = "auto",
    test_fraction: CutFraction = "auto",
) -> Splits:
    """The train, val and test images of a folder.

    `data_dir` holds train/, and perhaps val/ and test/, with class folders of the same names; or it holds class folders
    itself. Other usual names are recognised too (Training/, valid/, test_set/, seg_train/seg_train/; see
    `find_split_folders`). A missing val or test is cut from train alone: a share of each class, at least one image.
    Which images are cut depends only on their relative paths and on `split_seed`, so it is the same on every machine
    and in every run, and an added image does not move the others. How many are cut is logged.

    It may also be a table (.csv, .tsv, .parquet) of paths and labels; see `read_table`.

    Classes are the folders in train. Some of them may be missing or empty in val or test, which is logged. A test
    split without class folders has no labels: this is logged, and `test` is empty.

    An image is any file whose suffix is that of a format that Pillow can open here, or that has no suffix and begins
    like an image. Hidden and system files (.DS_Store, ._x, Thumbs.db, .ipynb_checkpoints) are skipped; so are other
    files, which is logged with their suffixes.

    Args:
        data_dir: the folder, or the table.
        split_seed: seed of the cut of a missing val or test.
        val_fraction: share of each class that is cut where val is missing; 'auto': 0.15, at most about 10,000 images.
        test_fraction: likewise for test; 0: there is no test split.

    Raises:
        DataError: a fraction is out of range; the folder does not exist or cannot be read, has no class folders, or it
            is not clear which of its folders are splits; val or test has a class that train lacks, or val has no image;
            a class of train is empty, or one that is to be cut has fewer than three images or none left to train on.
    """
    how = SplitCut(split_seed, val_fraction, test_fraction)
    folders, classes, found = _read(data_dir)
    missing = how.roles(list(found))
    if missing:
        parts = cut(found["train"], missing, how, folders["train"], classes)
        logger.info("%s", set_aside(parts, folders["train"], split_seed))
        found |= parts
    is_tested = "test" in found
    splits = {"test": (), **{role: tuple(samples) for role, samples in found.items()}}
    return Splits(classes, **splits, cut=tuple(missing), is_tested=is_tested)


def find_unsplit(data_dir: str | os.PathLike[str]) -> Splits | None:
    """All images of a folder of class folders, uncut, as train; None where the folder holds splits.

    Raises:
        DataError: as `find_splits`, but a class may have a single image.
    """
    folders, classes, found = _read(data_dir)
    if folders != {"train": Path(data_dir).expanduser().resolve()}:
        return None
    return Splits(classes, tuple(found["train"]), (), ())


def _read(data_dir: str | os.PathLike[str]) -> tuple[dict[str, Path], tuple[str, ...], dict[str, list[Sample]]]:
    """The folder of each split that has one, the classes, and the images in each of these folders."""
    root = Path(data_dir).expanduser().resolve()
    if is_table(root) and root.is_file():
        table = read_table(root)
        return dict.fromkeys(table.samples, root), table.classes, table.samples
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise DataError(f"The data folder {root} {problem}; data_dir must name a folder. {EXPECTED}")
    try:
        folders = find_split_folders(root)
        classes = _classes_of(root, folders.train)
        found = {role: _find_split(root, role, folders, classes) for role in folders.given()}
        return folders.given(), classes, found
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); repair or remove it.") from error


def _classes_of(root: Path, train: Path) -> tuple[str, ...]:
    folders = visible_folders(train)
    if len(folders) < 2:
        inside = visible_folders(folders[0])
        remedy = ""
        if train == root and inside:
            remedy = f" It holds {_listed([folder.name for folder in inside])}: perhaps data_dir is to be {folders[0]}."
        raise DataError(
            f"{train} holds a single class folder, {folders[0].name}/, but a classifier needs two. "
            f"Is data_dir one folder too high or too low?{remedy} {EXPECTED}"
        )
    return tuple(folder.name for folder in folders)


def _find_split(root: Path, role: str, folders: SplitFolders, classes: Sequence[str]) -> list[Sample]:
    """The samples of a split; none of a test split that has no labels."""
    folder = folders.given()[role]
    names = [each.name for each in visible_folders(folder)]
    if role == "test" and _has_no_labels(names, classes):
        but = f" but {names[0]}/" if names else ""
        logger.warning("%s has no class folders%s: there are no labels, and will be no test results", folder, but)
        return []
    _refuse_unknown_classes(role, folders, names, classes)
    samples = _find_samples(root, folder, [name if name in names else None for name in classes])
    present = {sample.label for sample in samples}
    absent = [name for label, name in enumerate(classes) if label not in present]
    if absent and role == "train":
        others = in_words(Counter(suffix_of(entry.name) for entry in files_below(folder / absent[0])))
        but = f" (but {others}, which cannot be read here)" if others else ""
        raise DataError(f"The class folder {folder / absent[0]} holds no image{but}; add images or remove the folder.")
    if not samples and role == "val":
        raise DataError(
            f"{folder} holds no image in a class folder, so that nothing can be validated on it; sort its images into "
            f"class folders ({_listed(classes)}), or remove it, and val is cut from {folders.train}."
        )
    if absent:
        logger.warning(
            "%s has no image of %d of %d classes, of which nothing is measured there: %s",
            folder, len(absent), len(classes), _listed(absent),
        )  # fmt: skip
    return samples


def _has_no_labels(names: Sequence[str], classes: Sequence[str]) -> bool:
    if len(names) == 1:
        return names[0] not in classes and means_unlabelled(names[0])
    return not names


def _refuse_unknown_classes(role: str, folders: SplitFolders, names: Sequence[str], classes: Sequence[str]) -> None:
    unknown = [name for name in names if name not in classes]
    if not unknown:
        return
    unlabelled = "; images without labels lie in it directly" if role == "test" else ""
    raise DataError(
        f"{folders.given()[role]} has class folders that {folders.train} has not: {_listed(unknown)}. Classes are "
        f"{_listed(classes)} in train, and {_listed(names)} in {role}. Give each folder of {role} the name of a class "
        f"of train, or remove it{unlabelled}."
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _find_samples(root: Path, folder: Path, names: Sequence[str | None]) -> list[Sample]:
    """The samples of a split, class by class; none of a class whose name is None."""
    prefix, suffixes = len(os.path.join(root, "")), image_suffixes()
    samples: list[Sample] = []
    passed_over = Counter(suffix_of(entry.name) for entry in visible_entries(folder) if not entry.is_dir())
    loose = sum(passed_over.pop(suffix, 0) for suffix in suffixes)
    for label, name in enumerate(names):
        of_class: list[Sample] = []
        for entry in files_below(folder / name) if name is not None else ():
            suffix = suffix_of(entry.name)
            # Only a file without a suffix is opened: a million of them would take minutes.
            if suffix not in suffixes and (suffix or not begins_like_an_image(entry.path)):
                passed_over[suffix] += 1
                continue
            status = entry.stat()
            relative = entry.path[prefix:].replace(os.sep, "/")
            of_class.append(Sample(entry.path, relative, label, status.st_size, status.st_mtime_ns))
        samples += sorted(of_class, key=lambda sample: sample.relative)
    if passed_over or loose:
        in_no_class = f"{loose:,} image{'s' if loose > 1 else ''} in no class folder" if loose else ""
        logger.warning(
            "%d files in %s were passed over: %s",
            passed_over.total() + loose,
            folder,
            ", ".join(filter(None, (in_words(passed_over), in_no_class))),
        )
    return samples
