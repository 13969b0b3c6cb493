"""Source: where the images of one split come from, whatever holds them: a folder, an archive, an array.

A source of your own is any class with these members; `source_loaders` makes loaders of it, which `train_at` takes as
its own: with reproducible views, the teacher's outputs in the cache, and a resume inside the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Content = str | bytes | npt.NDArray[np.uint8]
"""An image as it is held: the path of a file, the bytes of one, or RGB pixels [H, W, 3]."""

Mark = Literal["size", "size and time", "content"]
"""What an image is known by, besides its identity."""


@runtime_checkable
class Source(Protocol):
    """The images of one split, by position. It must be picklable: workers get a copy.

    Attributes:
        place: where they are, for people.
        classes: names of the classes.
        labels: of each image, positions in `classes`.
    """

    place: str
    classes: tuple[str, ...]
    labels: Sequence[int]

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def open(self, index: int) -> Content:
        """What holds an image; it is decoded by the caller."""
        ...

    def identity(self, index: int) -> str:
        """A stable name of an image, the same in every run: its path, or its key in an archive."""
        ...

    def fingerprint(self, mark: Mark) -> str:
        """A digest of all images in their order; another one where anything that `mark` sees is another.

        Args:
            mark: how closely each is looked at: 'content' reads it, the others cost little.
        """
        ...
