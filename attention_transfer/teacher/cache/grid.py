"""Grid of a stage's map: the positions of its cells on the image.

Output i of a convolution of odd size k, stride s and padding (k - 1) / 2 is centred at its input's position s i: the
cells of a ResNet stage of stride 4 are centred at pixels 0, 4, 8, ..., not at the middles of 4 x 4 blocks. A patch
embedding (size and stride 4, no padding) is centred at the middles. Which it is follows from the layers that ran.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor, nn

from attention_transfer.features.stages.stage import Stage
from attention_transfer.features.taps import Taps
from attention_transfer.modules import like_weights, undisturbed, unwrapped
from attention_transfer.networks.architecture import Size

logger = logging.getLogger(__name__)


class Axis(NamedTuple):
    """Along one axis, cell i is centred at pixel first + stride i (pixels are counted from 0)."""

    stride: float
    first: float

    def scaled(self, factor: float) -> Axis:
        """The same cells along an image so many times as long; pixel centres lie half a pixel from the edges."""
        return self if factor == 1 else Axis(self.stride * factor, (self.first + 0.5) * factor - 0.5)


class Grid(NamedTuple):
    """The cells of a map, along height and width."""

    rows: Axis
    columns: Axis

    def scaled(self, by_height: float, by_width: float) -> Grid:
        """The same cells on an image so many times as high and as wide."""
        return Grid(self.rows.scaled(by_height), self.columns.scaled(by_width))


def find_grids(
    model: nn.Module, images: Tensor, stages: Sequence[Stage | str], sizes: Sequence[Size] = ()
) -> list[Grid]:
    """The grid of each tapped stage, and of maps of other sizes, from the strided layers that run before it.

    Args:
        model: any convolutional network; it is run once in eval mode and not changed.
        images: [B, 3, H, W] on the network's device.
        stages: the tapped modules.
        sizes: (H, W) of other maps.
    """
    network = unwrapped(model)
    whole = (images.shape[2], images.shape[3])
    grids: dict[Size, Grid] = {whole: Grid(Axis(1, 0), Axis(1, 0))}

    def listen(module: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if not arguments or not isinstance(output, Tensor) or arguments[0].dim() != 4 or output.dim() != 4:
            return
        before, after = _size(arguments[0]), _size(output)
        # The two branches of a residual block end on the same grid: the first to get there defines it.
        if before in grids and after not in grids:
            sides = enumerate(zip(grids[before], before, after, strict=True))
            grids[after] = Grid(*(_through(axis, module, i, cells) for i, (axis, *cells) in sides))

    strided = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d)]
    with ExitStack() as hooks, undisturbed(network), Taps(network, stages) as taps:
        for module in strided:
            hooks.callback(module.register_forward_hook(listen).remove)
        network(like_weights(images, network))
    named = [(name, _size(features)) for name, features in zip(taps.names, taps.features, strict=True)]
    named += [("with the patches", size) for size in sizes]
    return [_grid_of(name, size, grids, whole) for name, size in named]


def _through(axis: Axis, module: Any, i: int, cells: Sequence[int]) -> Axis:
    """The grid of the output of a convolution or a pool along axis `i`, from that of its input.

    Args:
        axis: of the input.
        module: the convolution or pool.
        i: 0 for height, 1 for width.
        cells: of the input, and of the output.
    """
    stride = _of_axis(module.stride, i)
    reach = _of_axis(getattr(module, "dilation", 1), i) * (_of_axis(module.kernel_size, i) - 1)
    padding = _padding_before(module, i, stride, reach, cells)
    return Axis(axis.stride * stride, axis.first + axis.stride * (reach / 2 - padding))


def _padding_before(module: Any, i: int, stride: int, reach: int, cells: Sequence[int]) -> float:
    """Cells that a convolution or a pool adds before its input.

    Modules that pad as TensorFlow does declare no padding and pad by the input's size, more after it than before. Their
    output is larger than what they declare explains.
    """
    if isinstance(module.padding, str):
        return reach / 2 if module.padding == "same" else 0
    before, after = cells
    declared: int = _of_axis(module.padding, i)
    if getattr(module, "ceil_mode", False) or (before + 2 * declared - reach - 1) // stride + 1 == after:
        return declared
    return max(0, (after - 1) * stride + reach + 1 - before) // 2


def _of_axis(value: Any, i: int) -> Any:
    return value[i] if isinstance(value, tuple) else value


def _size(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]


def _grid_of(name: str, size: Size, grids: dict[Size, Grid], whole: Size) -> Grid:
    if size in grids:
        return grids[size]
    logger.info(
        "the grid of module %s cannot be found from the network's layers; its cells are taken for even blocks", name
    )
    strides = [image / cells for image, cells in zip(whole, size, strict=True)]
    return Grid(*(Axis(stride, (stride - 1) / 2) for stride in strides))
