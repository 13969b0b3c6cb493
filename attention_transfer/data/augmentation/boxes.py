"""Random boxes of a given area, in fractions of an image."""

from __future__ import annotations

import math

from attention_transfer.data.frame import Box

NARROWEST = 3 / 4
"""Least ratio of width to height of a crop, relative to the image's own; its inverse is the greatest."""


def draw_box(
    areas: tuple[float, float], area: float, ratio: float, x: float, y: float, *, narrowest: float = NARROWEST
) -> Box:
    """A random resized crop (Szegedy et al. 2015, section 6) from four numbers in [0, 1).

    The aspect ratio is relative to the image's own, log-uniform among those at which the area fits in.

    Args:
        areas: least and greatest.
        area, ratio, x, y: the numbers.
        narrowest: least ratio of width to height; its inverse is the greatest.
    """
    least, greatest = areas
    area = least + (greatest - least) * area
    narrow, wide = max(narrowest, area), min(1 / narrowest, 1 / area)
    ratio = narrow * (wide / narrow) ** ratio
    width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    left, top = (1 - width) * x, (1 - height) * y
    return left, top, min(1.0, left + width), min(1.0, top + height)
