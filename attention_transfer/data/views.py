"""Augmentation as a function: the same seed, view and index always give the same pixels.

A view's parameters are plain numbers in fractions of the image, so they can be drawn without opening it, and the
same geometric transformation can be applied to an attention map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from attention_transfer.data.augmentation import numbers
from attention_transfer.data.augmentation.boxes import draw_box
from attention_transfer.data.augmentation.erasing import NUMBERS as OF_ERASING
from attention_transfer.data.augmentation.erasing import draw_erased
from attention_transfer.data.augmentation.trivial import NUMBERS as OF_TRIVIAL
from attention_transfer.data.augmentation.trivial import TrivialChange, draw_change
from attention_transfer.data.frame import Box
from attention_transfer.errors import DataError

_HUE_SHARE = 0.1
_PADDING = 1 / 8
"""Greatest shift of pad-and-crop, as a fraction of each side: 4 pixels of 32, as is usual for CIFAR."""

# ITU-R BT.601: the weights of red, green and blue in the luma Y, and in the chroma axes I and Q.
LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_TO_GREY = np.tile(LUMA, (3, 1))
_TO_CHROMA = np.eye(3) - _TO_GREY
_TURN_CHROMA = np.linalg.inv(_TO_YIQ) @ np.array([[0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ _TO_YIQ


@dataclass(frozen=True)
class Augmentation:
    """How far a view may differ from the whole image.

    Attributes:
        crop_scale: least and greatest area of the crop, in fractions of the image in (0, 1].
        flip: mirror half of the views.
        rotation: greatest rotation to either side, in degrees in [0, 180].
        color_jitter: greatest relative change of brightness, contrast and saturation, in [0, 1];
            the hue turns by at most a tenth of it, in turns.
        pad_crop: shift by up to an eighth of each side; beyond the image its reflection is drawn, as if it were padded
            by 4 of 32 pixels and cropped. Beyond an image of resize='pad' the mean colour is.
        erasing: take a rectangle out of half of the views; see `augmentation.erasing`.
        trivial: one more random change of each view; see `augmentation.trivial`.
        mixup: alpha of mixup; 0: off. See `augmentation.mixing`.
        cutmix: alpha of CutMix; 0: off.

    Raises:
        DataError: a value is out of its range.
    """

    crop_scale: tuple[float, float] = (0.6, 1.0)
    flip: bool = True
    rotation: float = 10.0
    color_jitter: float = 0.2
    pad_crop: bool = False
    erasing: bool = False
    trivial: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        least, greatest = self.crop_scale
        if not 0 < least <= greatest <= 1:
            raise DataError(f"crop_scale is {self.crop_scale}; it must be two areas with 0 < least <= greatest <= 1.")
        if not 0 <= self.rotation <= 180:
            raise DataError(f"rotation is {self.rotation}; it must be in degrees from 0 to 180.")
        if not 0 <= self.color_jitter <= 1:
            raise DataError(f"color_jitter is {self.color_jitter}; it must be from 0 to 1.")
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < math.inf:
                raise DataError(f"{name} is {alpha}; it must be a number of at least 0.")

    @property
    def mixes(self) -> bool:
        """Whether views show a second image, too."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def empties(self) -> bool:
        """Whether parts of a view show no image, apart from the corners of `rotation`."""
        return self.pad_crop or self.erasing or self.trivial

    def identity(self) -> dict[str, object]:
        """What views depend on, for cache keys; of the parts that version 0.1 did not have, those that are on."""
        return {name: value for name, value in asdict(self).items() if value or name in _OF_VERSION_0_1}


_OF_VERSION_0_1 = ("crop_scale", "flip", "rotation", "color_jitter")


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """The transformations of an image, in the order in which they are applied.

    Attributes:
        box: left, top, right and bottom of the crop, in fractions of the image's width and height.
        flip: whether it is mirrored left to right.
        angle: rotation about the centre, counter-clockwise, in degrees.
        brightness, contrast, saturation: factors; 1 changes nothing.
        hue: shift of the hue in turns; 0 changes nothing.
        shift: of pad-and-crop along x and y, in paddings from -1 to 1; None: none, and beyond the image there is no
            reflection.
        padding: as a fraction of each side.
        trivial: one more change, or None.
        erased: the part of the view that is taken out, or None.
    """

    box: Box = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False
    angle: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    shift: tuple[float, float] | None = None
    padding: float = _PADDING
    trivial: TrivialChange | None = None
    erased: Box | None = None

    @property
    def changes_colours(self) -> bool:
        """Whether any colour is changed."""
        return (self.brightness, self.contrast, self.saturation, self.hue) != (1.0, 1.0, 1.0, 0.0)


def draw_view(augmentation: Augmentation, seed: int, view: int, index: int) -> ViewParameters:
    """The parameters of one view of one image, a pure function of the arguments.

    Every number is drawn whether it is used or not, so that switching the flip off does not move the crop.

    Args:
        augmentation: the ranges of the parameters.
        seed: of the views.
        view: number of the view.
        index: position of the image in the data set.
    """
    return draw_views(augmentation, seed, view, (index,))[0]


def draw_views(augmentation: Augmentation, seed: int, view: int, indices: Sequence[int]) -> list[ViewParameters]:
    """`draw_view` of many images of one view: the same parameters, in a fraction of the time.

    Args:
        augmentation: the ranges of the parameters.
        seed: of the views.
        view: number of the view.
        indices: positions of the images in the data set.
    """
    views = [_view_of(augmentation, drawn) for drawn in numbers.random_numbers(seed, view, indices)]
    if augmentation.pad_crop:
        shifts = numbers.random_numbers(seed, view, indices, 2, numbers.SHIFT)
        views = [replace(each, shift=(2 * x - 1, 2 * y - 1)) for each, (x, y) in zip(views, shifts, strict=True)]
    if augmentation.trivial:
        changes = numbers.random_numbers(seed, view, indices, OF_TRIVIAL, numbers.TRIVIAL)
        views = [replace(each, trivial=draw_change(x)) for each, x in zip(views, changes, strict=True)]
    if augmentation.erasing:
        boxes = numbers.random_numbers(seed, view, indices, OF_ERASING, numbers.ERASING)
        views = [replace(each, erased=draw_erased(x)) for each, x in zip(views, boxes, strict=True)]
    return views


def _view_of(augmentation: Augmentation, drawn: list[float]) -> ViewParameters:
    area, ratio, x, y, flip = drawn[:5]
    angle, brightness, contrast, saturation, hue = [2 * number - 1 for number in drawn[5:]]
    jitter = augmentation.color_jitter
    return ViewParameters(
        box=draw_box(augmentation.crop_scale, area, ratio, x, y),
        flip=augmentation.flip and flip < 0.5,
        angle=augmentation.rotation * angle,
        brightness=1 + jitter * brightness,
        contrast=1 + jitter * contrast,
        saturation=1 + jitter * saturation,
        hue=_HUE_SHARE * jitter * hue,
    )


def colour_matrices(views: Sequence[ViewParameters]) -> npt.NDArray[np.float64]:
    """[B, 3, 3]: brightness, contrast, saturation and hue, in this order, as matrices on colours (red, green, blue).

    Each of the four is affine on its own (the hue as a rotation about the grey axis in the YIQ colour space, as in
    NVIDIA DALI's `color_twist`), so their composition is computed on a 3 x 3 matrix instead of on the pixels. Not
    included is the share of the image's mean grey that contrast adds to each colour, see `grey_shares`.
    """
    # math, because NumPy's vectorised sine of a number may depend on its neighbours in the array.
    turns = [2 * math.pi * view.hue for view in views]
    values = [
        (math.cos(turn), math.sin(turn), view.saturation, view.brightness * view.contrast)
        for turn, view in zip(turns, views, strict=True)
    ]
    cosine, sine, saturation, strength = np.array(values).reshape(-1, 4, 1, 1).swapaxes(0, 1)
    colours: npt.NDArray[np.float64] = cosine * _TO_CHROMA + sine * _TURN_CHROMA
    colours *= saturation
    colours += _TO_GREY
    colours *= strength
    return colours


def grey_shares(views: Sequence[ViewParameters]) -> npt.NDArray[np.float64]:
    """[B]: how much of the image's mean grey is added to each colour, so that contrast preserves it."""
    return np.array([(1 - view.contrast) * view.brightness for view in views])
