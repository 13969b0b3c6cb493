"""Random erasing: a rectangle of half of the images is taken out.

Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), with the paper's probability, areas and aspect ratios.
What is erased is the mean colour, and counts as showing no image: attention is compared nowhere there.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from attention_transfer.data.augmentation.boxes import draw_box
from attention_transfer.data.frame import Box

NUMBERS = 5
PROBABILITY = 0.5
AREAS = (0.02, 0.4)
NARROWEST = 0.3
"""Least ratio of width to height, relative to the image's own; its inverse is the greatest."""


def draw_erased(numbers: Sequence[float]) -> Box | None:
    """The part of a view that is erased, or None, from five numbers in [0, 1)."""
    return draw_box(AREAS, *numbers[1:], narrowest=NARROWEST) if numbers[0] < PROBABILITY else None


def erase(image: Tensor, shown: Tensor, box: Box) -> None:
    """Set a part of a normalised image [3, H, W] to 0, the mean colour, and mark it in bool [H, W] as not shown."""
    height, width = shown.shape
    left, top, right, bottom = box
    rows = slice(round(top * height), max(round(top * height) + 1, round(bottom * height)))
    columns = slice(round(left * width), max(round(left * width) + 1, round(right * width)))
    image[:, rows, columns] = 0
    shown[rows, columns] = False
