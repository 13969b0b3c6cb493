"""The common range of values of a data set's images of more than 8 bits: found on a sample, or given."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from attention_transfer.data.decoding.depth import (
    Range,
    Values,
    clipped,
    colour_values,
    deep_kind,
    grey_values,
    in_words,
    levels_kept,
    natural_range,
)
from attention_transfer.data.decoding.images import unreadable
from attention_transfer.data.sources.base import Sample
from attention_transfer.errors import DataError

logger = logging.getLogger(__name__)

HEADERS = 256
"""Number of files whose header is read, to find those of more than 8 bits."""
MEASURED = 64
"""Number of files on whose values the range is found."""
CHECKED = 8
"""Number of files of each split on which a range is checked."""

_ALWAYS_8_BIT = (".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".avif")
_SAMPLED_VALUES = 16384

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Measured:
    """The values of a file of more than 8 bits: the least, the greatest, and an even sample [n] of them."""

    path: str
    low: float
    high: float
    some: Values
    is_float: bool

    @property
    def span(self) -> str:
        """The values in words."""
        return f"values {self.low:,.10g} to {self.high:,.10g}"


def checked_range(pixel_range: object) -> Literal["auto"] | Range:
    """'auto', or two finite numbers of which the first is the lower one.

    Raises:
        DataError: it is something else.
    """
    if pixel_range == "auto":
        return "auto"
    pair: Any = pixel_range
    if isinstance(pair, tuple | list) and len(pair) == 2 and all(map(_is_number, pair)) and pair[0] < pair[1]:
        return float(pair[0]), float(pair[1])
    raise DataError(f"pixel_range is {pixel_range!r}; it must be 'auto', or a lower and a higher number.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def choose_pixel_range(
    deciding: Sequence[Sample], others: Sequence[Sequence[Sample]], pixel_range: Literal["auto"] | Range = "auto"
) -> Range | None:
    """The range of values with which all files of a data set of more than 8 bits are read.

    Files whose suffix implies 8 bits are skipped. Of the others up to 256 headers are read, and
    of those with more than 8 bits up to 64 images; both are spread evenly over the samples, so that the same data set
    has the same range in every process and every run. The range is logged, and files that it fits badly are warned of.

    Args:
        deciding: the files on which the range is found for 'auto'.
        others: further splits, on which the range is checked.
        pixel_range: 'auto', or the range.

    Returns:
        `pixel_range` itself; for 'auto' see `natural_range`, and None where no file of more than 8 bits was found.

    Raises:
        DataError: a sampled file cannot be read or has pixels that are NaN or infinite; or for 'auto', the files hold
            different kinds of numbers, or a single value.
    """
    candidates, deep = _deep_files(deciding)
    found = [_measure(path) for path in _evenly(deep, MEASURED if pixel_range == "auto" else CHECKED)]
    if pixel_range == "auto":
        if not found:
            return None
        chosen = _common_range(found)
        logger.info(
            "%s images: pixel_range %s, found on %s of %s files (values %s to %s)",
            _what_they_are(found), in_words(chosen), f"{len(found):,}", f"{candidates:,}",
            f"{min(file.low for file in found):,.10g}", f"{max(file.high for file in found):,.10g}",
        )  # fmt: skip
    else:
        chosen = pixel_range
    _warn_of_few_levels(found, chosen)
    more = [_measure(path) for samples in others for path in _evenly(_deep_files(samples)[1], CHECKED)]
    _warn_of_clipping([*found, *more], chosen)
    return chosen


def _deep_files(samples: Sequence[Sample]) -> tuple[int, list[str]]:
    """The number of files that may have more than 8 bits, and those of a sample of them that do."""
    candidates = [sample.path for sample in samples if not sample.path.lower().endswith(_ALWAYS_8_BIT)]
    return len(candidates), [path for path in _evenly(candidates, HEADERS) if _is_deep(path)]


def _is_deep(path: str) -> bool:
    try:
        with Image.open(path) as image:
            return deep_kind(image) is not None
    except Exception:
        return False  # the error is raised when the file is decoded


def _evenly(items: Sequence[T], count: int) -> list[T]:
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _measure(path: str) -> Measured:
    try:
        with Image.open(path) as image:
            kind = deep_kind(image)
            if kind == "grey":
                values = grey_values(image, path)
            elif image.format in ("PNG", "TIFF"):
                values = colour_values(path)
                # without the alpha channel, which is full where the image is opaque
                values = values[..., : 1 if values.shape[2] == 2 else 3]
            else:
                # the upper 8 bits, as if the lower ones were all set
                values = np.asarray(image.convert("RGB")).astype(np.uint16) * 256 + 255
    except DataError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error
    low, high, flat = values.min().item(), values.max().item(), values.reshape(-1)
    some = flat[:: max(1, len(flat) // _SAMPLED_VALUES)].copy()
    is_float = values.dtype.kind == "f" and (high <= 1 or not np.array_equal(values, np.trunc(values)))
    return Measured(path, low, high, some, is_float)


def _common_range(found: Sequence[Measured]) -> Range:
    floats = [file for file in found if file.is_float]
    whole = [file for file in found if not file.is_float and file.high > 1]
    if floats and whole and floats[0].some.dtype.kind == "f" and any(file.some.dtype.kind != "f" for file in whole):
        integers = next(file for file in whole if file.some.dtype.kind != "f")
        raise DataError(
            f"{floats[0].path} has floating-point pixels ({floats[0].span}) and {integers.path} integers "
            f"({integers.span}), so that they have no range in common; save them alike, or set pixel_range."
        )
    low, high = min(file.low for file in found), max(file.high for file in found)
    if floats and low == high:
        raise DataError(
            f"all pixels of {found[0].path} and of the other sampled files are {low:g}, which tells no range; set "
            "pixel_range=(low, high)."
        )
    return natural_range(low, high, is_float=bool(floats))


def _what_they_are(found: Sequence[Measured]) -> str:
    if any(file.some.dtype.kind == "f" for file in found):
        return "floating-point"
    return "16-bit" if all(file.low >= -32768 and file.high <= 65535 for file in found) else "32-bit"


def _warn_of_few_levels(found: Sequence[Measured], chosen: Range) -> None:
    few = {file: levels for file in found if (levels := levels_kept(file.some, chosen)) is not None}
    # a few images may be dark, or empty
    if 10 * len(few) <= len(found):
        return
    worst = min(few, key=lambda file: few[file])
    farthest = max(found, key=lambda file: file.high)
    also = f"; others have more, as {farthest.path} ({farthest.span})" if farthest.high > 2 * worst.high else ""
    logger.warning(
        "with pixel_range %s few grey levels remain in %d of %d sampled files, as in %s (%s: %d levels of 256)%s; if "
        "these are images of fewer bits, set pixel_range, as in pixel_range=%s",
        in_words(chosen), len(few), len(found), worst.path, worst.span, few[worst], also,
        in_words(natural_range(worst.low, worst.high, is_float=worst.is_float)),
    )  # fmt: skip


def _warn_of_clipping(found: Sequence[Measured], chosen: Range) -> None:
    beyond = [file for file in found if file.low < chosen[0] or file.high > chosen[1]]
    if beyond:
        logger.warning("%s", clipped(beyond[0].path, beyond[0].low, beyond[0].high, chosen))
