"""Geometry of views: crop, flip, rotation, shift and shear as one matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attention_transfer.data.augmentation.trivial import change_matrix, turn
from attention_transfer.data.views import ViewParameters

Matrix = npt.NDArray[np.float64]
"""[2, 3]: maps (x, y, 1) to (x, y); coordinates run from -1 to 1, x to the right and y downwards."""


def matrices_of(views: Sequence[ViewParameters], size: tuple[int, int]) -> Matrix:
    """[B, 2, 3]: from the coordinates of views to those of the whole images.

    Args:
        views: of images.
        size: (H, W) of a view in pixels.
    """
    matrices = np.empty((len(views), 2, 3))
    for matrix, view in zip(matrices, views, strict=True):
        left, top, right, bottom = view.box
        mirror, (width, height) = -1 if view.flip else 1, (right - left, bottom - top)
        # The inverse of crop, flip and counter-clockwise rotation: rotate back, flip, and scale.
        matrix[:, :2] = turn(view.angle, size[0] / size[1]) * [[mirror * width], [height]]
        matrix[:, 2] = left + right - 1, top + bottom - 1
        if view.shift is not None:
            matrix[:, 2] += matrix[:, :2] @ _moved(view.shift, view.padding, size)
        if view.trivial is not None:
            matrix[:] = matrix @ change_matrix(view.trivial, *size)
    return matrices


def _moved(shift: tuple[float, float], padding: float, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """[2]: x and y by which a pad-and-crop moves a view, by whole pixels."""
    height, width = size
    return np.array([2 * _pixels(shift[0], padding * width) / width, 2 * _pixels(shift[1], padding * height) / height])


def _pixels(share: float, padding: float) -> int:
    """A whole number of pixels from -padding to padding, each as likely, from a number in [-1, 1)."""
    most = round(padding)
    return int((share + 1) / 2 * (2 * most + 1)) - most


def reflected(places: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Places [2, B, H, W] in pictures, from -1 to 1, those beyond a picture reflected as `numpy.pad` reflects.

    The mirror is the centre of the outermost pixel, which is not repeated.

    Args:
        places: x and y of each pixel of the views.
        sizes: height and width of each picture in pixels.
    """
    sides = [(1 - 1 / width, 1 - 1 / height) for height, width in sizes]
    edge = torch.tensor(sides, dtype=torch.float32).T[:, :, None, None]
    distance = places.abs()
    return torch.minimum(distance, 2 * edge - distance).copysign(places)
