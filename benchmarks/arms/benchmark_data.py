"""The two folders of images that `make bench` trains on, out of the archives that lie beside the project."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from attention_transfer.errors import DataError

HELD_OUT = 200
PHOTOS = 640
PHOTO_SUFFIXES = (".jpg", ".jpeg")


def cifar_slice(archive: Path, output: Path, images: int = 2000) -> Path:
    """An ImageFolder of some of CIFAR-10: train/ of `images`, val/ of 200 others, test/ of 200 test images.

    As many of each class in every split, drawn with a fixed seed. The archive is read once from end to end, into some
    60 MB of memory, and only the chosen files are written: unpacking all 60,000 would take longer than an arm.

    Args:
        archive: tar of CIFAR-10 as JPEG files, train/CLASS/NAME and test/CLASS/NAME.
        output: the folder in which the slice is kept; one that is there already is taken as it is.
        images: training images, a multiple of the number of classes.

    Raises:
        DataError: the archive has too few images of a class, or none, or `images` is no multiple of the classes.
    """
    data = output / f"cifar10-{images}"
    if data.exists():
        return data
    contents = _read(archive)
    draft = _empty(output / f"cifar10-{images}.draft")
    for path, split in _draw(contents, images).items():
        target = draft / split / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(contents[path])
    return draft.rename(data)


def _read(archive: Path) -> dict[PurePosixPath, bytes]:
    """All files SPLIT/CLASS/NAME, in one pass: a step back in a compressed archive reads it anew from its beginning."""
    contents = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if member.isfile() and len(path.parts) >= 3:
                source = tar.extractfile(member)
                assert source is not None  # a file has contents
                contents[PurePosixPath(*path.parts[-3:])] = source.read()
    return contents


def _draw(files: Iterable[PurePosixPath], images: int) -> dict[PurePosixPath, str]:
    """Which split each chosen file goes to."""
    by_class: dict[tuple[str, str], list[PurePosixPath]] = {}
    for path in files:
        by_class.setdefault((path.parts[0], path.parts[1]), []).append(path)
    classes = len({label for _, label in by_class})
    if not classes or images < classes or images % classes or HELD_OUT % classes:
        raise DataError(f"{images} images of {classes} classes; give a multiple of the number of classes.")
    wanted = {"train": {"train": images // classes, "val": HELD_OUT // classes}, "test": {"test": HELD_OUT // classes}}
    chosen: dict[PurePosixPath, str] = {}
    for (source, label), paths in sorted(by_class.items()):
        counts = wanted.get(source, {})
        if len(paths) < sum(counts.values()):
            raise DataError(f"{source}/{label} has {len(paths)} images, fewer than {sum(counts.values())}.")
        order = iter(np.random.default_rng(0).permutation(len(paths)).tolist())
        names = sorted(paths)
        for split, count in counts.items():
            chosen |= {names[next(order)]: split for _ in range(count)}
    return chosen


def photos_640(archive: Path, output: Path) -> Path:
    """An ImageFolder of the photos of ants and bees: train/ of 640 names for its photos, val/ as it is.

    Each class has 320 names, hard links to its photos in turn, so that the folder is large enough to time an epoch
    and takes no more room. The placeholder .gif and the .DS_Store files of train/ are left out.

    Args:
        archive: tar of train/CLASS/NAME and val/CLASS/NAME.
        output: the folder in which it is kept; one that is there already is taken as it is.

    Raises:
        DataError: a class has no photos, or 640 cannot be shared out over the classes.
        OSError: `output` is on a file system without hard links.
    """
    data = output / f"photos-{PHOTOS}"
    if data.exists():
        return data
    draft, whole = _empty(output / f"photos-{PHOTOS}.draft"), _empty(output / "photos.draft")
    shutil.unpack_archive(archive, whole)
    folders = [folder for folder in sorted((whole / "train").iterdir()) if folder.is_dir()]
    if not folders or PHOTOS % len(folders):
        raise DataError(f"{archive} has {len(folders)} classes in train/, over which {PHOTOS} cannot be shared out.")
    for folder in folders:
        photos = sorted(file for file in folder.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES)
        if not photos:
            raise DataError(f"{archive} has no photos in train/{folder.name}.")
        (draft / "train" / folder.name).mkdir(parents=True)
        for number in range(PHOTOS // len(folders)):
            photo = photos[number % len(photos)]
            name = f"{photo.stem}-{number // len(photos)}{photo.suffix}"
            (draft / "train" / folder.name / name).hardlink_to(photo)
    (whole / "val").rename(draft / "val")
    shutil.rmtree(whole)
    return draft.rename(data)


def _empty(folder: Path) -> Path:
    """A folder without what an interrupted call left in it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder
