"""From an image file, whatever its format, to an RGB image and to a normalised tensor."""

from __future__ import annotations

import functools
import os

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from attention_transfer.config import IMAGENET_MEAN, IMAGENET_STD
from attention_transfer.errors import DataError

Triple = tuple[float, float, float]


def decode_image(path: str | os.PathLike[str]) -> Image.Image:
    """The image of a file as 8-bit RGB, upright, at its full resolution.

    The EXIF orientation is applied. Grey becomes three equal channels, transparent pixels are laid on white,
    palettes and CMYK are converted, 16-bit values are scaled from [0, 65535] to [0, 255], and of an animation
    the first frame is taken.

    Raises:
        DataError: the file is missing, truncated or no image, or has 32-bit pixels whose range is unknown.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _as_rgb(image)
    # A decoder that meets a damaged file may raise nearly anything (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        raise unreadable(path, error) from error


def unreadable(path: str | os.PathLike[str], error: Exception) -> DataError:
    """What to say of a file that cannot be read as an image."""
    return DataError(
        f"{os.fspath(path)} cannot be read as an image ({type(error).__name__}: {error}); "
        "replace it by a whole image file, or remove it."
    )


def _as_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I"):
        image = _as_8_bit(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque)
    return image if image.mode == "RGB" else image.convert("RGB")


def _as_8_bit(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("its pixels are outside the 16-bit range [0, 65535]; save it with 8 or 16 bits")
    return Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))


def resize_whole(image: Image.Image, size: int) -> Image.Image:
    """The whole image in a square of `size` pixels: bilinear, antialiased, the aspect ratio not kept.

    No pixel is cropped away, so teacher, student and overlays share one frame.
    """
    return image.resize((size, size), Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD) -> Tensor:
    """An RGB image as a tensor: float32 [3, H, W], (x / 255 - mean) / std for pixels x in [0, 255]."""
    # NumPy, because torch takes three times as long for a small image.
    pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= 255
    pixels -= _per_channel(mean)
    pixels /= _per_channel(std)
    return torch.from_numpy(pixels)


@functools.cache
def _per_channel(values: Triple) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float32).reshape(3, 1, 1)
