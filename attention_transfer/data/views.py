"""Augmentation as a function: the same seed, view and index always give the same pixels.

A view's parameters are plain numbers in fractions of the image, so they can be drawn without opening it, and what
was done to the image can be done to a map of its attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from attention_transfer.config import IMAGENET_MEAN
from attention_transfer.errors import DataError

_ASPECT_RATIOS = (3 / 4, 4 / 3)
_HUE_SHARE = 0.1

# ITU-R BT.601: what of red, green and blue makes up the luma Y, and the two axes of chroma I and Q.
_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_TO_GREY = np.tile(_LUMA, (3, 1))
_TO_CHROMA = np.eye(3) - _TO_GREY
_TURN_CHROMA = np.linalg.inv(_TO_YIQ) @ np.array([[0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ _TO_YIQ

Colour = tuple[int, int, int]


def mean_colour(mean: tuple[float, float, float] = IMAGENET_MEAN) -> Colour:
    """The 8-bit colour that normalisation with `mean` turns into (nearly) zero."""
    red, green, blue = (min(255, max(0, round(255 * channel))) for channel in mean)
    return red, green, blue


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
    """What is done to an image, in this order.

    Attributes:
        box: left, top, right and bottom of the crop, in fractions of the image's width and height.
        flip: mirrored, left to right.
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


def draw_view(augmentation: Augmentation, seed: int, view: int, index: int) -> ViewParameters:
    """The parameters of one view of one image, a function of its four arguments and nothing else.

    Every number is drawn whether it is used or not, so that switching the flip off does not move the crop.
    """
    generator = np.random.default_rng(np.random.SeedSequence((seed, view, index)))
    area, ratio, x, y, flip, *changes = generator.random(10).tolist()
    angle, brightness, contrast, saturation, hue = (2 * change - 1 for change in changes)
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


def apply_view(image: Image.Image, parameters: ViewParameters, size: int, fill: Colour | None = None) -> Image.Image:
    """The view of an RGB image, in a square of `size` pixels.

    The crop is taken from the full resolution, bilinear and antialiased; corners that a rotation lays bare get the
    colour `fill` (None: the mean colour of ImageNet). Only Pillow touches the pixels, in one thread: no worker
    and no number of threads can change them.
    """
    left, top, right, bottom = parameters.box
    box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if parameters.flip:
        image = transforms.horizontal_flip(image)
    if parameters.angle:
        fill = mean_colour() if fill is None else fill
        image = transforms.rotate(image, parameters.angle, interpolation=InterpolationMode.BILINEAR, fill=list(fill))
    return _jitter(image, parameters)


def _jitter(image: Image.Image, parameters: ViewParameters) -> Image.Image:
    """Brightness, contrast, saturation and hue as one affine map of the colours.

    Each of the four is affine on its own (the hue as a rotation about the grey axis in the YIQ colour space, as in
    NVIDIA DALI's `color_twist`), so their composition is computed on a 3 x 3 matrix instead of on the pixels.
    """
    strength, angle = parameters.brightness * parameters.contrast, 2 * math.pi * parameters.hue
    if parameters.contrast == strength == parameters.saturation == 1 and not angle:
        return image
    chroma = math.cos(angle) * _TO_CHROMA + math.sin(angle) * _TURN_CHROMA
    colours = np.empty((3, 4))
    colours[:, :3] = strength * (_TO_GREY + parameters.saturation * chroma)
    # Contrast keeps the mean grey where it is; the other three map grey to grey.
    colours[:, 3] = (1 - parameters.contrast) * parameters.brightness * _mean_grey(image)
    return image.convert("RGB", matrix=tuple(colours.ravel().tolist()))


def _mean_grey(image: Image.Image) -> float:
    red, green, blue = image.resize((1, 1), Image.Resampling.BOX).tobytes()
    return float(_LUMA @ (red, green, blue))
