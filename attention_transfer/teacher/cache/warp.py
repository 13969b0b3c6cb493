"""The teacher's maps of a whole image, warped to a view of it by the view's own matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.data.frame import ImageSize, as_frame
from attention_transfer.modules import constants
from attention_transfer.teacher.cache.grid import Axis, Grid

_EDGE = 1 + 1e-4


def warp_maps(maps: Tensor, matrices: Tensor, grid: Grid, image_size: ImageSize) -> tuple[Tensor, Tensor]:
    """The maps of whole images as they lie under views of them.

    Each cell of the view's map is sampled bilinearly at its centre's position in the whole image; beyond the outermost
    centres, which are up to a stride away from the image's edge, the outermost cells are repeated.

    Args:
        maps: [B, h, w], of whole images.
        matrices: [B, 2, 3], from the view's coordinates to the whole image's, both from -1 to 1.
        grid: the positions of the cells on the image.
        image_size: side of the images in pixels, or (height, width).

    Returns:
        [B, h, w], the maps of the views, 0 where there is no coverage; and the coverage [B, h, w], 1 where a cell's
        centre lies in the whole image, else 0.
    """
    height, width = maps.shape[1:]
    frame = as_frame(image_size)
    cells = _centres(grid, (height, width), frame.size, maps)
    places = torch.einsum("bij,hwj->bhwi", matrices[:, :, :2], cells) + matrices[:, None, None, :, 2]
    coverage = (places.abs() <= _EDGE).all(dim=3).to(maps.dtype)
    x = _as_cell(places[..., 0], grid.columns, width, frame.width)
    y = _as_cell(places[..., 1], grid.rows, height, frame.height)
    where = torch.stack([x, y], dim=3)
    warped = F.grid_sample(maps.unsqueeze(1), where, padding_mode="border", align_corners=True).squeeze(1)
    return warped * coverage, coverage


def mirror(matrices: Tensor) -> Tensor:
    """The matrices [B, 2, 3] from the same views to the mirrored whole images, from those to the whole images."""
    return matrices * constants((-1.0, 1.0), matrices).view(2, 1)


def is_mirrored(matrices: Tensor) -> Tensor:
    """Whether each view shows the image mirrored: bool [B], from matrices [B, 2, 3]."""
    a = matrices
    return a[:, 0, 0] * a[:, 1, 1] - a[:, 0, 1] * a[:, 1, 0] < 0


def _centres(grid: Grid, size: tuple[int, int], image_size: tuple[int, int], like: Tensor) -> Tensor:
    """[h, w, 2]: (x, y) of each cell's centre, from -1 to 1 over the image."""
    y, x = (
        (2 * (torch.arange(cells, device=like.device, dtype=like.dtype) * axis.stride + axis.first + 0.5)) / side - 1
        for axis, cells, side in zip(grid, size, image_size, strict=True)
    )
    return torch.stack([x.expand(size), y[:, None].expand(size)], dim=2)


def _as_cell(places: Tensor, axis: Axis, cells: int, side: int) -> Tensor:
    """Positions from -1 to 1 over the image as positions from -1 to 1 between the outermost cells' centres."""
    pixels = (places + 1) * side / 2 - 0.5
    return 2 * (pixels - axis.first) / (axis.stride * max(1, cells - 1)) - 1
