"""Decoder: from an image file to the picture that views are rendered from, no larger than training needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

from attention_transfer.data.augmentation.boxes import NARROWEST
from attention_transfer.data.decoding.depth import FULL, Range
from attention_transfer.data.decoding.file import File, open_image
from attention_transfer.data.decoding.images import decode_image, resize_whole, unreadable
from attention_transfer.data.decoding.once import warn_once
from attention_transfer.data.frame import Frame, ImageSize, as_frame, least_sides
from attention_transfer.data.views import Augmentation
from attention_transfer.errors import DataError
from attention_transfer.versions import version

Picture = npt.NDArray[np.uint8]
"""[H, W, 3], RGB."""

PIXELS = "pixels"
"""The kind of the warnings that `Decoder` logs once."""

_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)


@dataclass(frozen=True)
class Decoder:
    """Decodes a file and reduces its size, identically whether the result is cached or not.

    Without an augmentation a picture is the whole image in its frame, without the empty rest of resize='pad'. With one
    its aspect ratio is preserved, and it is just so large that the smallest crop has all pixels of the frame (a shorter
    side of 191 pixels for crops of 0.6 of the area at 128 pixels); a smaller image is not enlarged.

    Attributes:
        image_size: of the network's input images, in pixels; or their frame.
        augmentation: of the views that are rendered from the pictures; None: only whole images.
        pixel_range: the values from black to white of files of more than 8 bits; None: see `decode_image`.
    """

    image_size: ImageSize | Frame
    augmentation: Augmentation | None = None
    pixel_range: Range | None = None

    @property
    def frame(self) -> Frame:
        """The frame of the network's input images."""
        return as_frame(self.image_size)

    @property
    def frame_of_pictures(self) -> Frame:
        """The frame that a picture is still to be brought into."""
        is_cropped = self.augmentation is None and self.frame.resize == "crop"
        return Frame(*self.frame.size) if is_cropped else self.frame

    @property
    def fixed_shape(self) -> tuple[int, int] | None:
        """Height and width that all pictures have; None where they have sizes of their own."""
        return self.frame.size if self.augmentation is None and self.frame.is_filled else None

    @property
    def least_sides(self) -> tuple[int, int] | None:
        """Height and width that a picture is reduced to, as far as its aspect ratio allows; None for whole images."""
        if self.augmentation is None:
            return None
        least = self.augmentation.crop_scale[0]
        return least_sides(self.frame, math.sqrt(least * max(NARROWEST, least)))

    def __call__(self, content: File | Picture, warn: Callable[[str], None] | None = None) -> Picture:
        """The picture of an image, uint8 [H, W, 3].

        Args:
            content: a path, the bytes of a file, or RGB pixels [H, W, 3].
            warn: called with a message if values are clipped or few grey levels remain; None: the first is logged.

        Raises:
            DataError: the file cannot be read as an image.
        """
        if isinstance(content, np.ndarray):
            image = Image.fromarray(_as_rgb(content))
        else:
            image = decode_image(content, self.pixel_range, warn=warn or partial(warn_once, PIXELS))
        if self.augmentation is None:
            return np.asarray(resize_whole(image, self.frame))
        return np.asarray(image.resize(self._reduced(*image.size), Image.Resampling.BILINEAR))

    def shape_of(self, content: File | Picture) -> tuple[int, int]:
        """Height and width of the picture of an image; of a file only the header is read.

        Raises:
            DataError: the file cannot be read as an image.
        """
        if self.fixed_shape is not None:
            return self.fixed_shape
        if isinstance(content, np.ndarray):
            width, height = content.shape[1], content.shape[0]
        else:
            width, height = _upright_size(content)
        width, height = self._reduced(width, height)
        return height, width

    def _reduced(self, width: int, height: int) -> tuple[int, int]:
        if self.least_sides is None:
            height, width = self.frame.fitted(height, width)
            return width, height
        ratios = self.least_sides[0] / height, self.least_sides[1] / width
        scale = max(ratios) if self.frame.is_filled else min(ratios)
        if scale >= 1:
            return width, height
        return max(1, round(width * scale)), max(1, round(height * scale))

    def identity(self) -> dict[str, object]:
        """Everything besides the file that the pixels depend on, for the cache key."""
        # (0, 65535) gives the same pixels as no range
        ranged = self.pixel_range not in (None, FULL)
        sides = self.least_sides
        return {
            "size": self.frame.image_size,
            "shorter side": sides if sides is None or len(set(sides)) > 1 else sides[0],
            **self.frame.identity(),
            "filter": "bilinear, antialiased",
            "pillow": version("pillow"),
            **({"pixel range": self.pixel_range} if ranged else {}),
        }


def _upright_size(file: File) -> tuple[int, int]:
    """Width and height of a file's image, upright."""
    try:
        with open_image(file) as image:
            width, height = image.size
            is_turned = image.getexif().get(_ORIENTATION) in _TRANSPOSED
    except Exception as error:
        raise unreadable(file, error) from error
    return (height, width) if is_turned else (width, height)


def _as_rgb(pixels: Picture) -> Picture:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(
            f"a source gave an array of {pixels.dtype} and shape {list(pixels.shape)}; it must give RGB pixels of "
            "uint8 and shape [H, W, 3], or a file."
        )
    return pixels
