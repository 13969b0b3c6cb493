"""Augmentation as a function: the same seed, view and index always give the same pixels.

A view's parameters are plain numbers in fractions of the image, so they can be drawn without opening it, and the
same geometric transformation can be applied to an attention map.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attention_transfer.errors import DataError

NARROWEST = 3 / 4
_ASPECT_RATIOS = (NARROWEST, 1 / NARROWEST)
_HUE_SHARE = 0.1
_NUMBERS = 10
_U64 = np.uint64

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

    Raises:
        DataError: a value is out of its range.
    """

    crop_scale: tuple[float, float] = (0.6, 1.0)
    flip: bool = True
    rotation: float = 10.0
    color_jitter: float = 0.2

    def __post_init__(self) -> None:
        least, greatest = self.crop_scale
        if not 0 < least <= greatest <= 1:
            raise DataError(f"crop_scale is {self.crop_scale}; it must be two areas with 0 < least <= greatest <= 1.")
        if not 0 <= self.rotation <= 180:
            raise DataError(f"rotation is {self.rotation}; it must be in degrees from 0 to 180.")
        if not 0 <= self.color_jitter <= 1:
            raise DataError(f"color_jitter is {self.color_jitter}; it must be from 0 to 1.")


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """The transformations of an image, in the order in which they are applied.

    Attributes:
        box: left, top, right and bottom of the crop, in fractions of the image's width and height.
        flip: whether it is mirrored left to right.
        angle: rotation about the centre, counter-clockwise, in degrees.
        brightness, contrast, saturation: factors; 1 changes nothing.
        hue: shift of the hue in turns; 0 changes nothing.
    """

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False
    angle: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

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
    return [_view_of(augmentation, numbers) for numbers in _random_numbers(seed, view, indices)]


def _view_of(augmentation: Augmentation, numbers: list[float]) -> ViewParameters:
    area, ratio, x, y, flip = numbers[:5]
    angle, brightness, contrast, saturation, hue = [2 * number - 1 for number in numbers[5:]]
    jitter = augmentation.color_jitter
    return ViewParameters(
        box=_draw_box(augmentation.crop_scale, area, ratio, x, y),
        flip=augmentation.flip and flip < 0.5,
        angle=augmentation.rotation * angle,
        brightness=1 + jitter * brightness,
        contrast=1 + jitter * contrast,
        saturation=1 + jitter * saturation,
        hue=_HUE_SHARE * jitter * hue,
    )


def _random_numbers(seed: int, view: int, indices: Sequence[int]) -> list[list[float]]:
    """Ten numbers in [0, 1) for each index: the outputs 10 index + 1 to 10 index + 10 of SplitMix64.

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") computes its n-th
    output from n alone, without sequential state.
    """
    before = np.array(indices, dtype=_U64).reshape(-1, 1) * _U64(_NUMBERS)
    state: npt.NDArray[np.uint64] = np.add(before, np.arange(1, _NUMBERS + 1, dtype=_U64))
    state *= _U64(0x9E3779B97F4A7C15)
    state += _stream(seed, view)
    state ^= state >> _U64(30)
    state *= _U64(0xBF58476D1CE4E5B9)
    state ^= state >> _U64(27)
    state *= _U64(0x94D049BB133111EB)
    state ^= state >> _U64(31)
    numbers: list[list[float]] = ((state >> _U64(11)) * 2.0**-53).tolist()
    return numbers


@functools.lru_cache(maxsize=16)
def _stream(seed: int, view: int) -> np.uint64:
    (stream,) = np.random.SeedSequence((seed, view)).generate_state(1, _U64)
    return np.uint64(stream)


def _draw_box(
    crop_scale: tuple[float, float], area: float, ratio: float, x: float, y: float
) -> tuple[float, float, float, float]:
    """A random resized crop (Szegedy et al. 2015, section 6) from four numbers in [0, 1).

    The aspect ratio is relative to the image's own, log-uniform among those at which the area fits in.
    """
    least, greatest = crop_scale
    area = least + (greatest - least) * area
    narrowest, widest = max(_ASPECT_RATIOS[0], area), min(_ASPECT_RATIOS[1], 1 / area)
    ratio = narrowest * (widest / narrowest) ** ratio
    width, height = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    left, top = (1 - width) * x, (1 - height) * y
    return left, top, min(1.0, left + width), min(1.0, top + height)


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
