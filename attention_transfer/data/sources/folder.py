"""Which image belongs to which class and to which split: what a data folder holds, without opening an image."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attention_transfer.errors import DataError

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
"""Files that count as images: what torchvision's ImageFolder takes, and .gif; in either case."""

_ROLES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}
_CUT_PERCENT = 15
_FEWEST_TO_CUT = 3
_EXPECTED = "Expected are train/, val/ and test/ with a folder for each class, or one folder for each class."


@dataclass(frozen=True, slots=True)
class Sample:
    """One image file and its class.

    Attributes:
        path: absolute path of the file.
        relative: path relative to the data folder, with forward slashes on every system.
        label: position of its class in `Splits.classes`.
        size: size of the file in bytes.
        mtime_ns: time of its last change in nanoseconds.
    """

    path: str
    relative: str
    label: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Splits:
    """The images of a data folder, each split in the order of classes and then of relative paths."""

    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    test: tuple[Sample, ...]


def find_splits(data_dir: str | os.PathLike[str], split_seed: int = 0) -> Splits:
    """The train, val and test images of a folder.

    `data_dir` holds train/, and perhaps val/ (or valid/, validation/) and test/, each with the same class
    folders; or it holds class folders itself. A missing val or test is cut from train alone: 15 % of each
    class, at least one image. Which images are cut depends on their relative paths and on `split_seed` alone,
    so it is the same on every machine and in every run, and an added image leaves the others where they are.

    Hidden and system files (.DS_Store, ._x, Thumbs.db, .ipynb_checkpoints) are passed over; so are other files
    that are no images, which is logged.

    Raises:
        DataError: the folder does not exist or cannot be read, has no class folders, its splits differ in
            their classes, a class is empty, or a class that is to be cut has fewer than three images.
    """
    root = Path(data_dir).expanduser().resolve()
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        raise DataError(f"The data folder {root} {problem}; data_dir must name a folder. {_EXPECTED}")
    try:
        folders = _split_folders(root)
        classes = _common_classes(folders)
        found = {role: _find_samples(root, folder, classes) for role, folder in folders.items()}
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); repair or remove it.") from error
    missing = [role for role in ("val", "test") if role not in found]
    if missing:
        found |= _cut(found["train"], missing, split_seed, folders["train"], classes)
        logger.info("%s cut from %s with split_seed %d", " and ".join(missing), folders["train"], split_seed)
    return Splits(classes, **{role: tuple(samples) for role, samples in found.items()})


def _split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split; a folder of class folders is a train folder and nothing else."""
    folders = _visible_folders(root)
    named = [folder for folder in folders if folder.name.lower() in _ROLES]
    # A class may be called "train" or "test" (CIFAR-100 has trains): a split is told by the folders in it.
    if not any(_visible_folders(folder) for folder in named):
        if len(folders) > len(named):
            return {"train": root}
        where = named[0] if named else root
        raise DataError(f"{where} holds no class folders. {_EXPECTED}")
    splits: dict[str, Path] = {}
    for folder in named:
        role = _ROLES[folder.name.lower()]
        if role in splits:
            raise DataError(f"{root} holds both {splits[role].name}/ and {folder.name}/; keep one as {role}/.")
        splits[role] = folder
    if "train" not in splits:
        raise DataError(f"{root} holds {named[0].name}/ but no train/; add it. {_EXPECTED}")
    if len(folders) > len(named):
        others = ", ".join(folder.name for folder in folders if folder not in named)
        logger.warning("folders beside train/ in %s were passed over: %s", root, others)
    return splits


def _common_classes(folders: Mapping[str, Path]) -> tuple[str, ...]:
    classes_of = {role: [folder.name for folder in _visible_folders(path)] for role, path in folders.items()}
    classes = classes_of["train"]
    for role, names in classes_of.items():
        alone = [f"{name}/ is only in {folders['train']}" for name in classes if name not in names]
        alone += [f"{name}/ is only in {folders[role]}" for name in names if name not in classes]
        if alone:
            raise DataError(
                f"train and {role} must have the same class folders, but {'; '.join(alone[:5])}"
                f"{f'; and {len(alone) - 5} more' if len(alone) > 5 else ''}. Add or remove these folders."
            )
    if len(classes) < 2:
        raise DataError(
            f"{folders['train']} holds a single class folder, {classes[0]}/, but a classifier needs two. "
            f"Is data_dir one folder too high or too low? {_EXPECTED}"
        )
    return tuple(classes)


def _find_samples(root: Path, folder: Path, classes: Sequence[str]) -> list[Sample]:
    prefix = len(os.path.join(root, ""))
    samples: list[Sample] = []
    passed_over = sum(1 for entry in _visible_entries(folder) if not entry.is_dir())
    for label, name in enumerate(classes):
        of_class: list[Sample] = []
        for entry in _files_below(os.path.join(folder, name), set()):
            if not entry.name.lower().endswith(IMAGE_EXTENSIONS):
                passed_over += 1
                continue
            status = entry.stat()
            relative = entry.path[prefix:].replace(os.sep, "/")
            of_class.append(Sample(entry.path, relative, label, status.st_size, status.st_mtime_ns))
        if not of_class:
            raise DataError(f"The class folder {folder / name} holds no image; add images or remove the folder.")
        samples += sorted(of_class, key=lambda sample: sample.relative)
    if passed_over:
        logger.warning(
            "%d files in %s were passed over: they are no images or lie in no class folder",
            passed_over,
            folder,
        )
    return samples


def _cut(
    samples: Sequence[Sample], missing: Sequence[str], split_seed: int, folder: Path, classes: Sequence[str]
) -> dict[str, list[Sample]]:
    """Take the missing splits out of `samples`, class by class; what is left is train."""
    parts: dict[str, list[Sample]] = {role: [] for role in ("train", *missing)}
    for label, group in itertools.groupby(samples, key=lambda sample: sample.label):
        of_class = list(group)
        if len(of_class) < _FEWEST_TO_CUT:
            raise DataError(
                f"The class folder {folder / classes[label]} has {len(of_class)} images, but {' and '.join(missing)} "
                f"must be cut from it: add images (at least {_FEWEST_TO_CUT}), or give {' and '.join(missing)} folders."
            )
        drawn = iter(sorted(of_class, key=lambda sample: _lot(sample, split_seed)))
        share = max(1, (_CUT_PERCENT * len(of_class) + 50) // 100)
        for role in missing:
            parts[role] += itertools.islice(drawn, share)
        parts["train"] += drawn
    return {role: sorted(part, key=lambda sample: (sample.label, sample.relative)) for role, part in parts.items()}


def _lot(sample: Sample, split_seed: int) -> bytes:
    # A digest, because a library's random generator may give other numbers in its next release.
    return hashlib.sha256(f"{split_seed}:{sample.relative}".encode("utf-8", "surrogateescape")).digest()


def _files_below(folder: str, seen: set[str]) -> Iterator[os.DirEntry[str]]:
    seen.add(os.path.realpath(folder))
    for entry in _visible_entries(folder):
        if not entry.is_dir():
            yield entry
        # A link may point to a folder above itself, and a walk without memory would never end.
        elif os.path.realpath(entry.path) not in seen:
            yield from _files_below(entry.path, seen)


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in _visible_entries(folder) if entry.is_dir())


def _visible_entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    with os.scandir(os.fspath(folder)) as entries:
        return [entry for entry in entries if not _is_hidden(entry.name)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES
