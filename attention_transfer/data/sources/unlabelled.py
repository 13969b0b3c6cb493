"""Images without labels: any tree of image files, and a source of labelled images with such a tree behind it."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attention_transfer.data.sources.base import Content, Mark, Sample, Source
from attention_transfer.data.sources.files import FileSource
from attention_transfer.data.sources.image_files import begins_like_an_image, image_suffixes, in_words, suffix_of
from attention_transfer.data.sources.listing import files_below
from attention_transfer.errors import DataError
from attention_transfer.features.gradients import IGNORED_LABEL as UNLABELLED

logger = logging.getLogger(__name__)


def find_unlabelled(folder: str | os.PathLike[str]) -> list[Sample]:
    """All images in a folder and in the folders below it, in the order of their relative paths.

    Args:
        folder: any tree; names of folders mean nothing.

    Raises:
        DataError: it is no folder, or holds no image.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"unlabelled_dir is {os.fspath(folder)!r}, which is no folder.")
    suffixes, passed_over = image_suffixes(), Counter[str]()
    samples = []
    for entry in files_below(root):
        suffix = suffix_of(entry.name)
        if suffix in suffixes or (not suffix and begins_like_an_image(entry.path)):
            status = entry.stat()
            relative = Path(os.path.relpath(entry.path, root)).as_posix()
            path = os.path.abspath(entry.path)  # noqa: PTH100 - resolves no links
            samples.append(Sample(path, relative, UNLABELLED, status.st_size, status.st_mtime_ns))
        else:
            passed_over[suffix] += 1
    if not samples:
        raise DataError(f"unlabelled_dir is {os.fspath(folder)!r}, which holds no image.")
    also = f"; passed over: {in_words(passed_over)}" if passed_over else ""
    logger.info("%s images without labels in %s%s", f"{len(samples):,}", root, also)
    return sorted(samples, key=lambda sample: sample.relative)


class WithUnlabelled:
    """Labelled images, and behind them unlabelled ones: a `Source` whose last labels are UNLABELLED.

    Args:
        labelled: the first images.
        unlabelled: the others.

    Attributes:
        labelled: as given; unlabelled: likewise.
    """

    def __init__(self, labelled: Source, unlabelled: FileSource) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self.place = labelled.place
        self.classes = labelled.classes
        self.labels: Sequence[int] = [*labelled.labels, *unlabelled.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Content:
        """An undecoded image."""
        source, position = self._at(index)
        return source.open(position)

    def identity(self, index: int) -> str:
        """Its name among those that have a label, or among those that have none."""
        source, position = self._at(index)
        return source.identity(position)

    def fingerprint(self, mark: Mark) -> str:
        """A digest of both."""
        both = f"{self.labelled.fingerprint(mark)} and {self.unlabelled.fingerprint(mark)}"
        return hashlib.sha256(both.encode()).hexdigest()

    def _at(self, index: int) -> tuple[Source, int]:
        first = len(self.labelled)
        return (self.labelled, index) if index < first else (self.unlabelled, index - first)
