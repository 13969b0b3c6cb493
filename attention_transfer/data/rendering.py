"""From decoded pictures to a batch of normalised images, augmented or whole.

A view's crop, flip and rotation are one matrix, and so are its changes of colour; both are applied to the whole batch
at once. Nothing is computed across samples, and every sum is of whole numbers, which floating point adds exactly: an
image depends neither on the rest of its batch nor on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.config import IMAGENET_MEAN, IMAGENET_STD
from attention_transfer.data.augmentation.erasing import erase
from attention_transfer.data.augmentation.geometry import Matrix, matrices_of, reflected
from attention_transfer.data.augmentation.trivial import recolour
from attention_transfer.data.decoding.images import Triple, resize_whole
from attention_transfer.data.frame import Box, Frame, ImageSize, as_frame
from attention_transfer.data.views import LUMA, ViewParameters, colour_matrices, grey_shares
from attention_transfer.errors import DataError

Pictures = Sequence[npt.NDArray[np.uint8]]
"""RGB pictures [H, W, 3], each of a size of its own."""

_Picture = npt.NDArray[np.uint8]

_DENSITY = 1.5
"""Greatest number of a picture's pixels per pixel of a view.

Bilinear lookup reads the two nearest pixels along each axis: with a higher density it skips some (aliasing), with a
lower one it blurs. At 1.5 the error against supersampling is least, see
`benchmarks/augmentation.py`.
"""

_PIXELS_AT_ONCE = 2**17
"""Pixels of views rendered at once, so that they fit the processor's cache: 128 of 32 x 32, 8 of 128 x 128."""


class Rendered(NamedTuple):
    """A batch of images.

    Attributes:
        images: float32 [B, 3, H, W], normalised.
        shown: bool [B, H, W]: where there is something of the picture; elsewhere an image is 0, the mean colour. None:
            everywhere.
    """

    images: Tensor
    shown: Tensor | None


def view_matrices(views: Sequence[ViewParameters], size: ImageSize | Frame = 1) -> Tensor:
    """The matrices from the coordinates of views to those of the whole images.

    Args:
        views: of images.
        size: side of a view in pixels, or (height, width); needed where a view is no square, is shifted by whole
            pixels, or is changed by TrivialAugment.

    Returns:
        float32 [B, 2, 3]: a matrix maps (x, y, 1) in the view to (x, y) in the whole image. In both, x runs from
        -1 at the left edge to 1 at the right edge and y from -1 at the top to 1 at the bottom, as in
        `torch.nn.functional.affine_grid` with align_corners=False. Outside of [-1, 1] there is no image.
    """
    return torch.from_numpy(matrices_of(views, as_frame(size).size).astype(np.float32))


def render_views(
    pictures: Pictures,
    views: Sequence[ViewParameters],
    size: ImageSize | Frame,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> Tensor:
    """One view of each picture: bilinear, antialiased, and normalised as (x / 255 - mean) / std.

    A view shows the region that its matrix (`view_matrices`) maps to, which after a rotation reaches beyond its crop.
    Outside the picture it is 0, the mean colour. Brightness, contrast, saturation and hue are applied in this
    order, on 8-bit pixels, without clipping in between; contrast preserves the mean grey of the image's visible part.

    Args:
        pictures: uint8 [H, W, 3] each.
        views: one for each picture.
        size: side of a view in pixels, up to 4096, or (height, width); with a `Frame` views are of what it shows of the
            picture.
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, of pixels in [0, 1].

    Returns:
        float32 [B, 3, H, W]. Each image is a function of its picture and its view: on one type of processor
        it is bit-identical whatever the batch and the number of threads.

    Raises:
        DataError: there are not as many views as pictures.
    """
    return rendered_views(pictures, views, as_frame(size), mean, std).images


def rendered_views(
    pictures: Pictures,
    views: Sequence[ViewParameters],
    frame: Frame,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
) -> Rendered:
    """`render_views`, and where the views show something of their pictures; see there."""
    if len(pictures) != len(views):
        raise DataError(f"there are {len(pictures)} pictures and {len(views)} views; give one view of each picture.")
    matrices = matrices_of(views, frame.size)
    images = torch.empty(len(views), 3, *frame.size, dtype=torch.float32)
    shown = torch.empty(len(views), *frame.size, dtype=torch.bool)
    count = max(1, _PIXELS_AT_ONCE // (frame.height * frame.width))
    for first in range(0, len(views), count):
        some = slice(first, first + count)
        parts = [_reduce(*one, frame) for one in zip(pictures[some], views[some], matrices[some], strict=True)]
        images[some], shown[some] = _render(parts, views[some], frame, mean, std)
    return Rendered(images, shown)


def _render(
    parts: Sequence[tuple[_Picture, Matrix]], views: Sequence[ViewParameters], frame: Frame, mean: Triple, std: Triple
) -> tuple[Tensor, Tensor]:
    pictures, places = [part for part, _ in parts], _places(np.stack([matrix for _, matrix in parts]), frame)
    outside = (places.abs().amax(dim=0) > 1).unsqueeze(1)
    # where neither a picture nor its reflection is drawn
    empty, is_reflected = outside, _are_reflected(views, frame)
    if is_reflected.any():
        beyond = reflected(places, [(picture.shape[0], picture.shape[1]) for picture in pictures])
        places = torch.where(is_reflected[:, None, None], beyond, places)
        empty = outside & ~is_reflected[:, None, None, None]
    images = _look_up(pictures, places).masked_fill_(empty, 0)
    if any(view.changes_colours for view in views):
        images = _change_colours(images, empty, views)
    if any(view.trivial is not None for view in views):
        recolour(images, empty, [view.trivial for view in views], mean)
    images, shown = _normalise(images, mean, std).masked_fill_(empty, 0), outside.logical_not_().squeeze(1)
    for i, view in enumerate(views):
        if view.erased is not None:
            erase(images[i], shown[i], view.erased)
    return images, shown


def _are_reflected(views: Sequence[ViewParameters], frame: Frame) -> Tensor:
    if not frame.is_filled:
        return torch.zeros(len(views), dtype=torch.bool)
    return torch.tensor([view.shift is not None for view in views])


def render_whole(
    pictures: Pictures, size: ImageSize | Frame, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD
) -> Tensor:
    """Whole images, bit-identical to `to_tensor(resize_whole(image))`; what resize='pad' leaves empty is 0.

    Args:
        pictures: uint8 [H, W, 3] each.
        size: side in pixels, (height, width), or a `Frame`. A picture that is to be squashed into the size that it has
            is only normalised.
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, of pixels in [0, 1].

    Returns:
        float32 [B, 3, H, W].
    """
    frame = as_frame(size)
    if not pictures:
        return torch.empty(0, 3, *frame.size, dtype=torch.float32)
    whole = [_brought(picture, frame) for picture in pictures]
    if frame.is_filled:
        return _normalise(_as_planes(np.stack(whole)), mean, std)
    images = torch.zeros(len(whole), 3, *frame.size, dtype=torch.float32)
    for image, picture in zip(images, whole, strict=True):
        height, width, _ = picture.shape
        top, left = frame.corner(height, width)
        image[:, top : top + height, left : left + width] = _normalise(_as_planes(picture[None]), mean, std)[0]
    return images


def rendered_whole(
    pictures: Pictures, frame: Frame, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD
) -> Rendered:
    """`render_whole`, and where the images show something of their pictures; see there."""
    images = render_whole(pictures, frame, mean, std)
    if frame.is_filled:
        return Rendered(images, None)
    shown = torch.zeros(len(pictures), *frame.size, dtype=torch.bool)
    for one, picture in zip(shown, pictures, strict=True):
        frame.mark_shown(one, *picture.shape[:2])
    return Rendered(images, shown)


def _brought(picture: _Picture, frame: Frame) -> _Picture:
    """The whole of a picture in its frame, without what 'pad' leaves empty."""
    height, width, _ = picture.shape
    is_there = frame.resize == "pad" and frame.fitted(height, width) == (height, width)
    if is_there or (frame.resize == "squash" and frame.size == (height, width)):
        return picture
    return np.asarray(resize_whole(Image.fromarray(picture), frame))


def _reduce(
    picture: _Picture, view: ViewParameters, matrix: Matrix, frame: Frame, density: float = _DENSITY
) -> tuple[_Picture, Matrix]:
    """The part of a picture that a view shows, at no more than `density` pixels to one, and the matrix into it.

    The part covers everything of the picture that the view reaches, so what is outside of it is outside of the picture.
    """
    left, top, right, bottom = view.box
    height, width, _ = picture.shape
    shown = bottom - top, right - left
    if not frame.shows_all:
        region = frame.region(height, width)
        matrix = _through(region, matrix)
        shown = shown[0] * (region[3] - region[1]), shown[1] * (region[2] - region[0])
    densities = shown[0] * height / frame.height, shown[1] * width / frame.width
    if max(densities) <= density:
        return picture, matrix
    rows, columns = _span(matrix[1], height), _span(matrix[0], width)
    part = picture[rows[0] : rows[1], columns[0] : columns[1]]
    sides = [
        max(1, round(length * min(1.0, density / present)))
        for length, present in zip(part.shape, densities, strict=False)
    ]
    planes = torch.from_numpy(part.copy()).permute(2, 0, 1).unsqueeze(0)
    reduced = F.interpolate(planes, sides, mode="bilinear", antialias=True)
    into = np.stack([_into(matrix[0], columns, width), _into(matrix[1], rows, height)])
    return reduced[0].permute(1, 2, 0).numpy(), into


def _through(region: Box, matrix: Matrix) -> Matrix:
    """A matrix into the frame as one into the picture, of which the frame shows a region."""
    left, top, right, bottom = region
    return matrix * [[right - left], [bottom - top]] + [[0, 0, left + right - 1], [0, 0, top + bottom - 1]]


def _span(row: Matrix, pixels: int) -> tuple[int, int]:
    """First pixel, and the one after the last, that a view covers along an axis of the picture; at least one."""
    reach = abs(row[0]) + abs(row[1])
    first, end = ((row[2] + side * reach + 1) / 2 * pixels for side in (-1, 1))
    start = min(max(0, math.floor(first)), pixels - 1)
    return start, max(start + 1, min(pixels, math.ceil(end)))


def _into(row: Matrix, span: tuple[int, int], pixels: int) -> Matrix:
    """A row of a matrix into the whole picture, converted to one into a part of it."""
    centre, half = (span[0] + span[1]) / pixels - 1, (span[1] - span[0]) / pixels
    return (row - (0, 0, centre)) / half


def _places(matrices: Matrix, frame: Frame) -> Tensor:
    """[2, B, H, W]: x and y in the picture of each pixel of the views."""
    a, b, c = torch.from_numpy(matrices.astype(np.float32)).permute(2, 1, 0).unsqueeze(3)
    # Exactly symmetric, so that a mirrored view is the mirror image of the view.
    x, y = (torch.arange(1 - side, side, 2, dtype=torch.float32) / side for side in (frame.width, frame.height))
    places: Tensor = (a * x).unsqueeze(2) + (b * y + c).unsqueeze(3)
    return places


def _look_up(pictures: Pictures, places: Tensor) -> Tensor:
    """[B, 3, H, W]: the pictures sampled at places [2, B, H, W], whole numbers from 0 to 255."""
    where = places.permute(1, 2, 3, 0)
    if len({picture.shape for picture in pictures}) == 1:
        images = _bilinear(np.stack(pictures), where)
    else:
        images = torch.cat([_bilinear(picture[None], where[i : i + 1]) for i, picture in enumerate(pictures)])
    return images.round_()


def _bilinear(pictures: _Picture, where: Tensor) -> Tensor:
    return F.grid_sample(_as_planes(pictures), where, mode="bilinear", padding_mode="border", align_corners=False)


def _as_planes(pictures: _Picture) -> Tensor:
    return torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2).contiguous()


def _change_colours(images: Tensor, outside: Tensor, views: Sequence[ViewParameters]) -> Tensor:
    """Brightness, contrast, saturation and hue of [B, 3, H, W]; 0 where `outside` [B, 1, H, W]."""
    # Floats represent whole numbers and the sum of a row exactly, so that no order of summation rounds.
    red, green, blue = images.sum(dim=3).sum(dim=2, dtype=torch.float64).numpy().T
    # an empty view has no mean grey, and its colours are not seen
    shown = outside.logical_not().sum(dim=(1, 2, 3)).clamp_(min=1).numpy()
    mean_grey = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue) / shown
    offsets = _per_sample(grey_shares(views) * mean_grey)
    from_red, from_green, from_blue = _per_sample(colour_matrices(views)).unbind(dim=2)
    # Separate products and sums, because the rounding of a matrix product depends on its shape.
    changed = images[:, 0:1] * from_red.unsqueeze(3)
    changed += images[:, 1:2] * from_green.unsqueeze(3)
    changed += images[:, 2:3] * from_blue.unsqueeze(3)
    changed += offsets.view(-1, 1, 1, 1)
    return changed.clamp_(0, 255)


def _per_sample(values: Matrix) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).unsqueeze(-1)


def _normalise(images: Tensor, mean: Triple, std: Triple) -> Tensor:
    images /= 255
    images -= torch.tensor(mean).view(3, 1, 1)
    images /= torch.tensor(std).view(3, 1, 1)
    return images
