"""Source: the images of one split, whatever holds them: a folder, an archive, an array.

A user's own source is any class with these members; `source_loaders` makes loaders of it, which `train_at` treats like
those of a folder: with reproducible views, cached outputs of the teacher, and resuming inside an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


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


Content = str | bytes | npt.NDArray[np.uint8]
"""An undecoded image: the path of a file, its bytes, or RGB pixels [H, W, 3]."""

Mark = Literal["size", "size and time", "content"]
"""The properties of an image that go into a fingerprint, besides its identity."""


@runtime_checkable
class Source(Protocol):
    """The images of one split, by position. It must be picklable: workers get a copy.

    Attributes:
        place: their location, for messages.
        classes: names of the classes.
        labels: the position in `classes` of each image's class.
    """

    place: str
    classes: tuple[str, ...]
    labels: Sequence[int]

    def __len__(self) -> int:
        """The number of images."""
        ...

    def open(self, index: int) -> Content:
        """An undecoded image."""
        ...

    def identity(self, index: int) -> str:
        """A stable name of an image, the same in every run: its path, or its key in an archive."""
        ...

    def fingerprint(self, mark: Mark) -> str:
        """A digest of all images in their order, which changes with any property that `mark` covers.

        Args:
            mark: the properties: 'content' reads each image, the others cost little.
        """
        ...
