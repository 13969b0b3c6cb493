"""Frame: the rectangle that a network sees, and how the whole of an image is brought into it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from attention_transfer.errors import DataError

ImageSize = int | tuple[int, int]
"""The side of a square in pixels, or (height, width)."""

Resize = Literal["squash", "crop", "pad"]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in fractions of an image's width and height; beyond 0 or 1 there is no image."""

CROP_PCT = 0.875
_SIDES = (8, 4096)


@dataclass(frozen=True)
class Frame:
    """The size of a network's input images, and how the whole of an image is brought into it.

    Attributes:
        height: in pixels.
        width: in pixels.
        resize: 'squash' takes the whole image, whatever its aspect ratio becomes; 'crop' makes it so large that it
            covers (height, width) / crop_pct and takes the centre (for a square: the shorter side becomes
            side / crop_pct); 'pad' makes it as large as fits, in the centre, and leaves the rest empty.
        crop_pct: of 'crop', in (0, 1].

    Raises:
        DataError: crop_pct is out of range, or resize is unknown.
    """

    height: int
    width: int
    resize: Resize = "squash"
    crop_pct: float = CROP_PCT

    def __post_init__(self) -> None:
        if self.resize not in ("squash", "crop", "pad"):
            raise DataError(f"resize is {self.resize!r}; it must be 'squash', 'crop' or 'pad'.")
        if not 0 < self.crop_pct <= 1:
            raise DataError(f"crop_pct is {self.crop_pct!r}; it must be above 0 and at most 1.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def image_size(self) -> ImageSize:
        """The side of a square frame; (height, width) of any other."""
        return self.height if self.height == self.width else self.size

    @property
    def shows_all(self) -> bool:
        """Whether the whole of every image fills the frame."""
        return self.resize == "squash"

    @property
    def is_filled(self) -> bool:
        """Whether every image covers the frame."""
        return self.resize != "pad"

    def identity(self) -> dict[str, object]:
        """What the pixels of a whole image depend on, for cache keys; without what is at its default."""
        content: dict[str, object] = {} if self.resize == "squash" else {"resize": self.resize}
        return content | ({"crop_pct": self.crop_pct} if self.resize == "crop" else {})

    def scale(self, height: int, width: int) -> tuple[float, float]:
        """How many times larger than an image of this height and width, along each, it is in the frame."""
        by_height, by_width = self.height / height, self.width / width
        if self.resize == "squash":
            return by_height, by_width
        scale = max(by_height, by_width) / self.crop_pct if self.resize == "crop" else min(by_height, by_width)
        return scale, scale

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a whole image in the frame of 'pad', in pixels."""
        scale, _ = self.scale(height, width)
        return max(1, min(self.height, round(height * scale))), max(1, min(self.width, round(width * scale)))

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Top and left of an image in the middle of the frame, in pixels."""
        return (self.height - height) // 2, (self.width - width) // 2

    def region(self, height: int, width: int) -> Box:
        """The part of an image of this height and width that the frame shows."""
        if self.shows_all:
            return 0.0, 0.0, 1.0, 1.0
        if self.resize == "pad":
            inner_height, inner_width = self.fitted(height, width)
            top, left = self.corner(inner_height, inner_width)
            sides = left / inner_width, top / inner_height
            return -sides[0], -sides[1], (self.width - left) / inner_width, (self.height - top) / inner_height
        scale, _ = self.scale(height, width)
        across, down = self.width / (scale * width), self.height / (scale * height)
        return (1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2

    def mark_shown(self, shown: Tensor, height: int, width: int) -> None:
        """Set the pixels of bool [H, W] to True where a frame of 'pad' shows an image of this height and width."""
        inner_height, inner_width = self.fitted(height, width)
        top, left = self.corner(inner_height, inner_width)
        shown[top : top + inner_height, left : left + inner_width] = True


def as_frame(size: ImageSize | Frame, resize: Resize = "squash", crop_pct: float = CROP_PCT) -> Frame:
    """The frame of a size.

    Args:
        size: side of a square, or (height, width), in pixels from 1 to 4096; a frame stays as it is.
        resize: see `Frame`.
        crop_pct: likewise.

    Raises:
        DataError: the size is neither.
    """
    if isinstance(size, Frame):
        return size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise DataError(f"image_size is {size!r}; it must be the side of a square, or (height, width).")
    return Frame(*sides, resize, crop_pct)


def check_image_size(size: object) -> None:
    """Check that a size is one that networks can be trained with.

    Raises:
        DataError: it is not an integer, or two, from 8 to 4096.
    """
    sides = size if isinstance(size, tuple | list) else (size, size)
    is_whole = len(sides) == 2 and all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if not is_whole or not all(_SIDES[0] <= side <= _SIDES[1] for side in sides):
        raise DataError(
            f"image_size is {size!r}; it must be an integer from {_SIDES[0]} to {_SIDES[1]}, or two: (height, width)."
        )


def least_sides(frame: Frame, least: float) -> tuple[int, int]:
    """Height and width in which a picture must be kept, so that the smallest crop has all pixels of the frame.

    Args:
        frame: of the views.
        least: least length of a side of a crop, as a fraction of the frame's.
    """
    share = least * (frame.crop_pct if frame.resize == "crop" else 1.0)
    return math.ceil(frame.height / share), math.ceil(frame.width / share)
