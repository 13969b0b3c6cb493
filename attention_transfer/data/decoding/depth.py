"""Pixels of more than 8 bits: detecting them, reading their values, and scaling them to 8 bits."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from attention_transfer.data.decoding.file import File, name_of, open_image
from attention_transfer.errors import DataError

Range = tuple[float, float]
Values = npt.NDArray[Any]

FULL: Range = (0.0, 65535.0)
"""All values of 16 bits: the range where none is given."""

FEW_LEVELS = 32
_ENOUGH_VALUES = 2**18
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Pillow's names of byte orders (big, little, native), each with the opposite one."""
_DEPTHS = (8, 10, 12, 14, 16)
_UNSIGNED, _SAMPLE_FORMAT, _BITS_PER_SAMPLE = 1, 339, 258


def deep_kind(image: Image.Image) -> Literal["grey", "colour"] | None:
    """The kind of an opened but unread image with more than 8 bits a channel and no range of its own.

    Returns:
        None for 8 bits or fewer, and for a portable pixmap that gives its greatest value, by which Pillow scales.
    """
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    words = [word for each in arguments for word in (each if isinstance(each, tuple) else (each,))]
    if image.format == "PPM" and image.mode != "F":
        is_full = any(word == FULL[1] for word in words)
        return None if not is_full else "colour" if image.mode == "RGB" else "grey"
    if image.mode.startswith("I") or image.mode == "F":
        return "grey"
    return "colour" if any(isinstance(word, str) and ";16" in word for word in words) else None


def grey_values(image: Image.Image, path: File) -> Values:
    """The values [H, W] of a grey image of more than 8 bits: integers, or float32.

    Args:
        image: of mode I, I;16, I;16B or F.
        path: its file, for messages.

    Raises:
        DataError: a pixel is NaN or infinite.
    """
    tags = getattr(image, "tag_v2", {})
    is_unsigned = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)) == (_UNSIGNED,) and tags.get(_BITS_PER_SAMPLE) == (32,)
    values: Values = np.asarray(image)
    if image.mode == "I" and is_unsigned:
        values = values.view(np.uint32)  # Pillow reads them as signed
    if image.mode == "F" and not np.isfinite(values).all():
        raise DataError(
            f"{name_of(path)} has pixels that are NaN or infinite; replace them by numbers, or remove the file."
        )
    return values


def colour_values(path: File) -> npt.NDArray[np.uint16]:
    """The values [H, W, C] of a PNG or TIFF file with 16 bits a channel, of which Pillow reads 8 at a time.

    Returns:
        uint16 [H, W, C], where C is 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha).

    Raises:
        DataError: it is a file of another kind.
    """
    with open_image(path) as image:
        order = _raw_mode(image)
        if order == "LA;16B":
            # Pillow has no raw mode with the bytes swapped, but four bytes are also the four channels of RGBA
            parts = _bytes_as(image, "RGBA")
            return parts[..., ::2] * np.uint16(256) + parts[..., 1::2]
        if image.mode not in ("RGB", "RGBA") or not order.startswith(f"{image.mode};16") or order[-1] not in _SWAPPED:
            raise DataError(
                f"{name_of(path)} has colours of 16 bits in a form of which the upper 8 bits alone can be read, so "
                "that they can have no other pixel_range than (0, 65535); save it as PNG, or with 8 bits."
            )
        lower = _bytes_as(image, order[:-1] + _SWAPPED[order[-1]])
    with open_image(path) as image:
        return np.asarray(image) * np.uint16(256) + lower


def _raw_mode(image: Image.Image) -> str:
    """Pillow's raw mode of an opened file, such as 'RGB;16B'."""
    assert isinstance(image, ImageFile.ImageFile)
    arguments = image.tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _bytes_as(image: Image.Image, raw_mode: str) -> npt.NDArray[np.uint16]:
    """The pixels of an opened file, read in another raw mode than its own."""
    assert isinstance(image, ImageFile.ImageFile)
    tiles: list[Any] = []
    for tile in image.tile:
        arguments = (raw_mode, *tile[3][1:]) if isinstance(tile[3], tuple) else raw_mode
        parts = (*tile[:3], arguments)
        tiles.append(type(tile)(*parts) if hasattr(tile, "_fields") else parts)
    image.tile = tiles
    return np.asarray(image).astype(np.uint16)


def to_8_bit(values: Values, pixel_range: Range) -> npt.NDArray[np.uint8]:
    """Values [...] scaled from `pixel_range` to [0, 255] and rounded, uint8 [...]; those outside of it are clipped."""
    low, high = pixel_range
    numbers = np.clip(values.astype(np.float64), low, high)
    numbers -= low
    numbers *= 255
    numbers /= high - low
    numbers += 0.5
    return numbers.astype(np.uint8)  # rounds down


def natural_range(low: float, high: float, *, is_float: bool = False) -> Range:
    """The most likely nominal range of values between `low` and `high`.

    Whole numbers have the full range of their bit depth: 8, 10, 12, 14 or 16 bits, beyond 16 any number of bits, and
    below 0 the power of two that reaches far enough. Floating-point numbers have [0, 1] if they lie in it, else
    [low, high].

    Args:
        low: least value.
        high: greatest value.
        is_float: whether the values are not whole numbers.

    Example:
        >>> natural_range(3, 4071), natural_range(-1000, 3000)
        ((0.0, 4095.0), (-1024.0, 4095.0))
    """
    if is_float:
        return (0.0, 1.0) if low >= 0 and high <= 1 else (float(low), float(high))
    needed = max(0, int(high)).bit_length()
    depth = next((bits for bits in _DEPTHS if bits >= needed), needed)
    bottom = 0.0 if low >= 0 else -float(2 ** (int(-low) - 1).bit_length())
    return bottom, float(2**depth - 1)


def levels_kept(values: Values, pixel_range: Range) -> int | None:
    """The number of grey levels that remain of `values` [...], if few; None if enough do, or there were few before."""
    some = values.reshape(-1)[:: max(1, values.size // _ENOUGH_VALUES)]
    before, after = np.unique(some), np.unique(to_8_bit(some, pixel_range))
    few = len(after) < FEW_LEVELS and len(before) > 2
    return len(after) if few and (2 * len(after) <= len(before) or after[-1] < FEW_LEVELS) else None


def in_words(pixel_range: Range) -> str:
    """A range as text, such as "(0, 4095)"."""
    return "({:.10g}, {:.10g})".format(*pixel_range)


def clipped(path: File, low: float, high: float, pixel_range: Range) -> str:
    """The warning for a file of which some values are outside the range.

    Args:
        path: the file.
        low: its least value.
        high: its greatest value.
        pixel_range: the range.
    """
    return (
        f"values outside pixel_range {in_words(pixel_range)} are clipped, as in {name_of(path)} "
        f"(values {low:,.10g} to {high:,.10g})"
    )
