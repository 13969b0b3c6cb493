"""TrivialAugment: one random change of each image, of random strength.

Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation" (ICCV 2021), the wide space,
with the strengths of torchvision's TrivialAugmentWide. Shears, translations and rotations are part of a view's matrix,
so that attention maps follow them; the other changes are torchvision's functions of the view's own pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BINS = 31
NUMBERS = 3

_GREATEST = {
    "ShearX": 0.99, "ShearY": 0.99, "TranslateX": 32.0, "TranslateY": 32.0, "Rotate": 135.0,
    "Brightness": 0.99, "Color": 0.99, "Contrast": 0.99, "Sharpness": 0.99,
}  # fmt: skip
"""Of either sign: shears as a slope, translations in pixels, the rotation in degrees, the others relative to 1."""

KINDS = ("Identity", *_GREATEST, "Posterize", "Solarize", "AutoContrast", "Equalize")
GEOMETRIC = frozenset({"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"})


class TrivialChange(NamedTuple):
    """One change of an image.

    Attributes:
        kind: one of KINDS.
        strength: signed; of Posterize the bits that are kept, of Solarize the threshold in [0, 255].
    """

    kind: str
    strength: float = 0.0

    @property
    def changes_colours(self) -> bool:
        """Whether it changes pixels where they are."""
        return self.kind not in GEOMETRIC and self.kind != "Identity"


def draw_change(numbers: Sequence[float]) -> TrivialChange:
    """The change of an image, from three numbers in [0, 1): kind, strength and sign."""
    kind, level = KINDS[int(numbers[0] * len(KINDS))], int(numbers[1] * BINS) / (BINS - 1)
    if kind in _GREATEST:
        return TrivialChange(kind, math.copysign(_GREATEST[kind] * level, numbers[2] - 0.5))
    if kind == "Posterize":
        return TrivialChange(kind, float(8 - round(6 * level)))
    return TrivialChange(kind, 255.0 * (1 - level)) if kind == "Solarize" else TrivialChange(kind)


def change_matrix(change: TrivialChange, height: int, width: int) -> npt.NDArray[np.float64]:
    """The matrix [3, 3] from coordinates in the changed view to those before, both from -1 to 1; x to the right.

    As in torchvision, shears leave the top left corner where it is, and the rotation is counter-clockwise.

    Args:
        change: a geometric one; any other gives the identity.
        height: of the view in pixels.
        width: likewise.
    """
    matrix, strength = np.eye(3), change.strength
    if change.kind == "ShearX":
        matrix[0, 1:] = strength * height / width
    elif change.kind == "ShearY":
        matrix[1, ::2] = strength * width / height
    elif change.kind == "TranslateX":
        matrix[0, 2] = -2 * int(strength) / width
    elif change.kind == "TranslateY":
        matrix[1, 2] = -2 * int(strength) / height
    elif change.kind == "Rotate":
        matrix[:2, :2] = turn(strength, height / width)
    return matrix


def turn(degrees: float, ratio: float = 1.0) -> npt.NDArray[np.float64]:
    """The matrix [2, 2] that turns back a counter-clockwise rotation, in coordinates from -1 to 1.

    Args:
        degrees: of the rotation.
        ratio: height / width of the view, in whose pixels the rotation keeps all angles.
    """
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine * ratio], [sine / ratio, cosine]])


def recolour(images: Tensor, empty: Tensor, changes: Sequence[TrivialChange | None], mean: Sequence[float]) -> None:
    """Change the colours of images in place.

    Args:
        images: float32 [B, 3, H, W], in [0, 255].
        empty: bool [B, 1, H, W], where nothing is seen.
        changes: one for each image, or None.
        mean: of each channel, in [0, 1]: the colour that counts as seen where nothing is.
    """
    neutral = (255 * torch.tensor(mean)).round().view(3, 1, 1)
    for i, change in enumerate(changes):
        if change is not None and change.changes_colours:
            pixels = torch.where(empty[i], neutral, images[i].round()).to(torch.uint8)
            images[i] = recoloured(pixels, change)


def recoloured(image: Tensor, change: TrivialChange) -> Tensor:
    """An image with other colours.

    Args:
        image: uint8 [3, H, W].
        change: one that changes colours.

    Returns:
        uint8 [3, H, W].
    """
    changed: Tensor = _functions()[change.kind](image, change.strength)
    return changed


@functools.cache
def _functions() -> dict[str, Callable[[Tensor, float], Any]]:
    from torchvision.transforms.v2 import functional as transforms

    return {
        "Brightness": lambda image, strength: transforms.adjust_brightness(image, 1 + strength),
        "Color": lambda image, strength: transforms.adjust_saturation(image, 1 + strength),
        "Contrast": _contrast,
        "Sharpness": lambda image, strength: transforms.adjust_sharpness(image, 1 + strength),
        "Posterize": lambda image, strength: transforms.posterize(image, int(strength)),
        "Solarize": transforms.solarize,
        "AutoContrast": lambda image, _: transforms.autocontrast(image),
        "Equalize": lambda image, _: transforms.equalize(image),
    }


def _contrast(image: Tensor, strength: float) -> Tensor:
    """Torchvision's adjust_contrast, whose float32 mean of a large image depends on the number of threads."""
    from torchvision.transforms.v2 import functional as transforms

    grey = transforms.rgb_to_grayscale(image).double()
    mixed: Tensor = (1 + strength) * image.double() - strength * grey.mean()
    return mixed.clamp(0, 255).to(torch.uint8)
