"""Image files of any format as RGB images and as normalised tensors."""

from __future__ import annotations

import functools
import logging
import re
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from attention_transfer.config import IMAGENET_MEAN, IMAGENET_STD
from attention_transfer.data.decoding.depth import (
    FEW_LEVELS,
    FULL,
    Range,
    Values,
    clipped,
    colour_values,
    deep_kind,
    grey_values,
    in_words,
    levels_kept,
    natural_range,
    to_8_bit,
)
from attention_transfer.data.decoding.file import File, name_of, open_image
from attention_transfer.data.frame import Frame, ImageSize, as_frame
from attention_transfer.errors import DataError

logger = logging.getLogger(__name__)

Triple = tuple[float, float, float]

# Pillow warns of images above half the size that it refuses; all that it does not refuse are read. Appended, so that a
# user's own filter, such as one that makes it an error, takes precedence.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)


def decode_image(
    path: File,
    pixel_range: Range | None = None,
    *,
    warn: Callable[[str], None] | None = None,
) -> Image.Image:
    """The image of a file as 8-bit RGB, upright, at its full resolution.

    The EXIF orientation is applied. Grey becomes three equal channels, transparent pixels are laid on white,
    palettes and CMYK are converted, and of an animation the first frame is taken. Pixels of more than 8 bits are
    scaled from `pixel_range` to [0, 255]; it does not affect others.

    Args:
        path: the file.
        pixel_range: the values that become black and white, outside of which they are clipped; None: 16-bit pixels are
            scaled from [0, 65535], and others of more than 8 bits are refused.
        warn: called with a message if values are clipped, or if few grey levels remain without a range; None: the
            message is logged.

    Raises:
        DataError: the file is missing, truncated or no image, is larger than Pillow takes (179 megapixels), has NaN or
            infinite pixels, or pixels whose range is unknown.
    """
    try:
        with open_image(path) as image:
            return _as_rgb(_reduced(image, path, pixel_range, warn or logger.warning))
    except DataError:
        raise
    # A decoder that meets a damaged file may raise nearly anything (OSError, SyntaxError, struct.error, ...).
    except Exception as error:
        raise unreadable(path, error) from error


def unreadable(path: File, error: Exception) -> DataError:
    """The error for a file that cannot be read as an image, or is too large."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_large(path, error)
    return DataError(
        f"{name_of(path)} cannot be read as an image ({type(error).__name__}: {error}); "
        "replace it by a whole image file, or remove it."
    )


def _too_large(path: File, error: Exception) -> DataError:
    # Pillow gives the numbers only in its message
    figures = [f"{int(number):,}" for number in re.findall(r"\d{4,}", str(error))]
    pixels, limit = figures if len(figures) == 2 else ("too many", f"{2 * (Image.MAX_IMAGE_PIXELS or 0):,}")
    return DataError(
        f"{name_of(path)} has {pixels} pixels, and images of more than {limit} are not read, for one that is damaged "
        "or hostile could fill the memory (twice Pillow's Image.MAX_IMAGE_PIXELS); save it smaller, or remove it."
    )


def _reduced(image: Image.Image, path: File, pixel_range: Range | None, warn: Callable[[str], None]) -> Image.Image:
    """The image upright, converted to 8 bits a channel."""
    kind = deep_kind(image)
    if kind == "colour" and pixel_range not in (None, FULL):
        image = _colour_of_16_bits(image, path, pixel_range, warn)
    ImageOps.exif_transpose(image, in_place=True)
    image.load()
    if kind == "grey":
        values = grey_values(image, path)
        if pixel_range is None:
            _check_16_bit(values, path)
            _warn_of_few_levels(values, path, warn)
        else:
            _warn_of_clipping(values, path, pixel_range, warn)
        return Image.fromarray(to_8_bit(values, pixel_range or FULL))
    if kind == "colour" and pixel_range is None and 0 < np.asarray(image.convert("RGB")).max() < FEW_LEVELS // 2:
        warn(_few_levels(path, "its values are below 4,096"))
    # a portable pixmap, which Pillow has scaled to 16 bits
    return Image.fromarray(to_8_bit(np.asarray(image), FULL)) if image.mode.startswith("I") else image


def _colour_of_16_bits(image: Image.Image, path: File, pixel_range: Range, warn: Callable[[str], None]) -> Image.Image:
    values = colour_values(path)
    channels = values.shape[2]
    colours, alpha = values[..., : 1 if channels == 2 else 3], values[..., channels - 1 :]
    _warn_of_clipping(colours, path, pixel_range, warn)
    pixels = to_8_bit(colours, pixel_range).repeat(3 // colours.shape[2], axis=2)
    if channels != 3:
        pixels = np.concatenate([pixels, to_8_bit(alpha, FULL)], axis=2)
    reduced = Image.fromarray(pixels)
    reduced.getexif().update(image.getexif())
    return reduced


def _check_16_bit(values: Values, path: File) -> None:
    remedy = "give pixel_range=(low, high), or save it with 8 or 16 bits"
    if values.dtype.kind == "f":
        raise DataError(f"{name_of(path)} has floating-point pixels of unknown range; {remedy}.")
    if values.min() < 0 or values.max() > FULL[1]:
        raise DataError(f"{name_of(path)} has pixels outside the 16-bit range [0, 65535]; {remedy}.")


def _warn_of_clipping(values: Values, path: File, pixel_range: Range, warn: Callable[[str], None]) -> None:
    low, high = values.min().item(), values.max().item()
    if low < pixel_range[0] or high > pixel_range[1]:
        warn(clipped(path, low, high, pixel_range))


def _warn_of_few_levels(values: Values, path: File, warn: Callable[[str], None]) -> None:
    levels = levels_kept(values, FULL)
    if levels is not None:
        low, high = values.min().item(), values.max().item()
        likely = in_words(natural_range(low, high))
        warn(f"{_few_levels(path, f'{levels} of 256')}; if its values are from {likely}, give pixel_range={likely}")


def _few_levels(path: File, what: str) -> str:
    return f"{name_of(path)}: few grey levels remain where 16-bit pixels are scaled from (0, 65535) ({what})"


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque)
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_whole(image: Image.Image, size: ImageSize | Frame) -> Image.Image:
    """The whole image in a frame, which teacher, student and overlays share: bilinear, antialiased.

    Args:
        image: RGB.
        size: side of a square, or (height, width), into which the image is squashed; or a `Frame`.

    Returns:
        an image of the frame's size; with resize='pad' the part of it that shows the image, without the empty rest.
    """
    frame = as_frame(size)
    if frame.resize == "squash":
        return image.resize((frame.width, frame.height), Image.Resampling.BILINEAR)
    if frame.resize == "pad":
        height, width = frame.fitted(image.height, image.width)
        return image.resize((width, height), Image.Resampling.BILINEAR)
    left, top, right, bottom = frame.region(image.height, image.width)
    box = left * image.width, top * image.height, right * image.width, bottom * image.height
    return image.resize((frame.width, frame.height), Image.Resampling.BILINEAR, box)


def to_tensor(image: Image.Image, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD) -> Tensor:
    """An RGB image as a normalised tensor, (x / 255 - mean) / std for pixels x in [0, 255].

    Args:
        image: 8-bit RGB.
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, of pixels in [0, 1].

    Returns:
        float32 [3, H, W].
    """
    # NumPy, because torch takes three times as long for a small image.
    pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= 255
    pixels -= _per_channel(mean)
    pixels /= _per_channel(std)
    return torch.from_numpy(pixels)


@functools.cache
def _per_channel(values: Triple) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float32).reshape(3, 1, 1)
