"""Finding the splits of a data folder: its folders for train, val and test, or class folders directly in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attention_transfer.data.sources.image_files import image_suffixes, suffix_of
from attention_transfer.data.sources.listing import visible_entries, visible_folders
from attention_transfer.data.sources.split_names import SplitName, is_container_name, read_split_name
from attention_transfer.errors import DataError

logger = logging.getLogger(__name__)

EXPECTED = "Expected are train/, val/ and test/ with a folder for each class, or one folder for each class."
ROLES = ("train", "val", "test")

# A data folder with more folders than this holds classes: listing them all again to compare names would take long.
_MOST_FOLDERS = 32
_IN_COMMON = 2
_DEEPEST = 3

_Named = dict[str, list[Path]]


@dataclass(frozen=True)
class SplitFolders:
    """The folder of each split.

    Attributes:
        train: holds the class folders.
        val: None if there is none.
        test: None if there is none.
    """

    train: Path
    val: Path | None = None
    test: Path | None = None

    def given(self) -> dict[str, Path]:
        """The folders that exist, by the name of their split."""
        folders = {"train": self.train, "val": self.val, "test": self.test}
        return {role: folder for role, folder in folders.items() if folder is not None}


def find_split_folders(root: Path) -> SplitFolders:
    """The folder of each split; a folder of class folders is a train folder without val and test.

    Folders are splits by their names (see `read_split_name`) if they hold folders; so a class may be called "train"
    or "test". A split may be nested one folder deeper, as seg_train/seg_train/ is. Folders of any name that share two
    or more names of the folders in them are not classes.

    Raises:
        DataError: two folders claim one split; there are splits, but no train among them; folders share the names of
            their folders, and it is not clear which split each of them is; train and test hold no class folders.
        OSError: a folder cannot be read.
    """
    folders = visible_folders(root)
    named = _named_splits(root, folders)
    if not any(_class_folders(folder) for of_role in named.values() for folder in of_role):
        _refuse_splits_without_classes(root, folders, named)
        _refuse_shared_names(root, folders, {})
        return SplitFolders(root)
    chosen = _one_each(root, named)
    _refuse_a_doubtful_train(root, folders, chosen)
    _refuse_shared_names(root, folders, chosen)
    found = {role: _inner(folder) for role, folder in chosen.items()}
    _log_splits(root, folders, chosen, found)
    return SplitFolders(found["train"], found.get("val"), found.get("test"))


def _named_splits(root: Path, folders: Sequence[Path]) -> _Named:
    """The folders that are named after splits, by split: plain names if train is one, else those of one data set."""
    groups: dict[str, list[tuple[Path, SplitName]]] = {"": []}
    for folder in folders:
        name = read_split_name(folder.name)
        if name is not None and name.role != "unlabelled":
            groups.setdefault(name.of, []).append((folder, name))
    by_split = {of: _by_split(group) for of, group in groups.items()}
    plain = by_split.pop("")
    pairs = [named for named in by_split.values() if "train" in named and len(named) > 1]
    if "train" in plain or not pairs:
        return plain
    if len(pairs) > 1:
        names = ", ".join(f"{folder.name}/" for named in pairs for of_role in named.values() for folder in of_role)
        raise DataError(
            f"{root} holds the splits of {len(pairs)} data sets or classes: {names}. Move them to train/, val/ and "
            "test/ with a folder for each class, or keep those of one data set."
        )
    return pairs[0]


def _by_split(group: Sequence[tuple[Path, SplitName]]) -> _Named:
    named: _Named = {}
    for folder, name in group:
        named.setdefault(name.role, []).append(folder)
    # A held-out split is for evaluation; by default it is the test split, on which no model is selected.
    held_out = named.pop("held out", [])
    if held_out:
        named.setdefault("val" if "test" in named and "val" not in named else "test", []).extend(held_out)
    return named


def _one_each(root: Path, named: _Named) -> dict[str, Path]:
    for role, (first, *more) in named.items():
        if more:
            raise DataError(f"{root} holds both {first.name}/ and {more[0].name}/; keep one as {role}/.")
    chosen = {role: named[role][0] for role in ROLES if role in named}
    if "train" not in chosen:
        present = next(iter(chosen.values()))
        raise DataError(f"{root} holds {present.name}/ but no train/; add it. {EXPECTED}")
    if not _class_folders(chosen["train"]):
        raise DataError(f"{chosen['train']} holds no class folders. {EXPECTED}")
    return chosen


def _inner(folder: Path) -> Path:
    """The folder with the class folders of a split: its only folder, if that has the same name or a generic one."""
    split = read_split_name(folder.name)
    for _ in range(_DEEPEST):
        inside = visible_folders(folder)
        if len(inside) != 1 or _holds_images(folder):
            break
        name = inside[0].name
        is_same = name.lower() == folder.name.lower() or (split is not None and read_split_name(name) == split)
        if not is_same and not is_container_name(name):
            break
        folder = inside[0]
    return folder


def _class_folders(folder: Path) -> list[Path]:
    return visible_folders(_inner(folder))


def _holds_images(folder: Path) -> bool:
    suffixes = image_suffixes()
    return any(suffix_of(entry.name) in suffixes and not entry.is_dir() for entry in visible_entries(folder))


def _refuse_splits_without_classes(root: Path, folders: Sequence[Path], named: _Named) -> None:
    """Refuse folders named after splits that hold only images: train and test are unlikely to be two classes."""
    flat = [folder for of_role in named.values() for folder in of_role]
    others = [folder for folder in folders if folder not in flat]
    if flat and not others:
        raise DataError(f"{flat[0]} holds no class folders. {EXPECTED}")
    if "train" in named and len(named) > 1:
        raise DataError(
            f"{root} holds {_names(flat)}, which are called after splits but hold no class folders, beside "
            f"{_names(others)}. {EXPECTED} If they are classes, give them other names."
        )
    if not folders:
        raise DataError(f"{root} holds no class folders. {EXPECTED}")


def _refuse_a_doubtful_train(root: Path, folders: Sequence[Path], chosen: Mapping[str, Path]) -> None:
    """Refuse a single folder called train beside several folders of images, which may all be classes."""
    if len(chosen) > 1:
        return
    train = chosen["train"]
    others = [folder for folder in folders if folder != train and not is_container_name(folder.name)]
    beside = [folder for folder in others if read_split_name(folder.name) is None and _holds_images(folder)]
    if len(beside) > 1:
        raise DataError(
            f"{root} holds {train.name}/ with folders in it, and {_names(beside)} with images: it is not clear whether "
            f"{train.name}/ is a split or a class. If a split, move the others away; if a class, give it another name "
            "or put its images directly into it."
        )


def _refuse_shared_names(root: Path, folders: Sequence[Path], chosen: Mapping[str, Path]) -> None:
    """Refuse folders that hold folders of the same names, unless each is a known split: they are not classes."""
    if len(folders) > _MOST_FOLDERS:
        return
    inside = {folder: {each.name for each in _class_folders(folder)} for folder in folders}
    for folder in folders:
        if folder in chosen.values():
            continue
        name = read_split_name(folder.name)
        if len(chosen) == len(ROLES) and name is None:
            continue
        for other in folders:
            shared = sorted(inside[folder] & inside[other])
            if other != folder and len(shared) >= _IN_COMMON:
                first, second = sorted((folder, other))
                raise DataError(
                    f"{root} holds {first.name}/ and {second.name}/ with folders of the same names "
                    f"({', '.join(shared[:5])}{', ...' if len(shared) > 5 else ''}), as splits have, but it is not "
                    "clear which is which. Rename them to train/, val/ and test/, or move away what is neither; if "
                    "they are classes, put their images directly into them."
                )


def _log_splits(root: Path, folders: Sequence[Path], chosen: Mapping[str, Path], found: Mapping[str, Path]) -> None:
    if any(folder.relative_to(root).as_posix() != role for role, folder in found.items()):
        used = ", ".join(f"{role} is {folder.relative_to(root).as_posix()}/" for role, folder in found.items())
        logger.info("splits in %s: %s", root, used)
    others = [folder for folder in folders if folder not in chosen.values()]
    if others:
        names = ", ".join(folder.name for folder in others)
        logger.warning("folders beside %s/ in %s were passed over: %s", chosen["train"].name, root, names)


def _names(folders: Sequence[Path]) -> str:
    names = [f"{folder.name}/" for folder in folders]
    if len(names) > 5:
        names = [*names[:5], f"{len(names) - 5} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
