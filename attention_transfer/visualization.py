"""Visualising attention: attention maps as tensors, and figures that overlay them on the images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attention_transfer.config import Config, resolve_config
from attention_transfer.errors import ConfigError, DataError
from attention_transfer.features.attention_discovery import find_attention
from attention_transfer.features.attention_probabilities import AttentionTaps
from attention_transfer.features.gradients import input_gradient
from attention_transfer.features.maps import FEATURES, INPUT_GRADIENT, MapFunction, normalize
from attention_transfer.features.stages.choose import choose_stages, split_layers
from attention_transfer.features.taps import Taps
from attention_transfer.files import write_atomically
from attention_transfer.losses.configured import chosen_map_function
from attention_transfer.modules import undisturbed, unwrapped
from attention_transfer.networks.input_shapes import refusing_misfits
from attention_transfer.networks.preprocessing import preprocessing_of
from attention_transfer.networks.registry import card_of
from attention_transfer.overlays import PIXELS, Page, denormalise, enlarge, overlay, png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Settings = Config | Mapping[str, Any] | None


def extract_attention_maps(model: nn.Module, x: Tensor, config: Settings = None) -> list[Tensor]:
    """The attention maps of every stage, as the loss compares them, before they are resized.

    The network runs in eval mode without gradients, and is left unchanged. With attention='gradient' there is one map,
    for the class that the network itself finds likeliest; with 'class_token' there is one for each compared block.

    Args:
        model: any convolutional network.
        x: normalised float images [B, 3, H, W], or one image [3, H, W]; moved to the device and number format of the
            network.
        config: uses layers, which overrides the stages (of 'student.module:teacher.module' the student's side);
            attention and attention_power.

    Returns:
        for each stage, shallow to deep, [B, H, W] in [0, 1] at the stage's resolution; the map of each image has an L2
        norm of 1.

    Raises:
        DataError: x is not a float tensor of such a shape.
        ConfigError: layers names a module that the network does not have.

    Example:
        >>> from attention_transfer import create_model
        >>> maps = extract_attention_maps(create_model("CifarResNet-20"), torch.rand(2, 3, 32, 32))
        >>> [tuple(stage.shape) for stage in maps]
        [(2, 32, 32), (2, 16, 16), (2, 8, 8)]
    """
    config = resolve_config(config)
    student_layers, _ = split_layers(config.layers)
    return _attention(model, _as_batch(model, x), student_layers, chosen_map_function(config))


def visualize_attention_maps(model: nn.Module, x: Tensor, config: Settings = None, layer_idx: int = 0) -> Tensor:
    """The attention map of one stage, scaled for display: for each image the minimum is 0, the maximum 1.

    Args:
        model: as in `extract_attention_maps`.
        x: images [B, 3, H, W], or one image [3, H, W].
        config: uses layers, attention and attention_power.
        layer_idx: the stage, 0 for the shallowest; negative ones count from the deepest, as in a list.

    Returns:
        [B, H, W] in [0, 1] at the stage's resolution; 0 everywhere where a map is constant.

    Raises:
        ConfigError: the network has no such stage.
        DataError: x is not a float tensor of images.
    """
    maps = extract_attention_maps(model, x, config)
    if not -len(maps) <= layer_idx < len(maps):
        raise ConfigError(
            f"layer_idx is {layer_idx}, but {type(unwrapped(model)).__name__} has {len(maps)} stages: it must be from "
            f"{-len(maps)} to {len(maps) - 1}."
        )
    return _spread(maps[layer_idx])


def _attention(
    model: nn.Module, images: Tensor, layers: Sequence[str] | None, map_function: MapFunction
) -> list[Tensor]:
    weights = next(model.parameters(), None)
    images = images if weights is None else images.to(weights)
    # hooks on a compiled network may never be called: the unwrapped one runs uncompiled
    network = unwrapped(model)
    with refusing_misfits(network, images, "network"):
        if map_function.of != FEATURES:
            return _attention_of(network, images, map_function)
        stages = choose_stages(network, images, layers).stages
        with undisturbed(network), Taps(network, stages) as taps:
            network(images)
    with torch.no_grad():
        return [normalize(map_function(features)) for features in taps.features]


def _attention_of(network: nn.Module, images: Tensor, function: MapFunction) -> list[Tensor]:
    """The maps [B, H, W] by a function of something else than features, normalised."""
    with undisturbed(network):
        if function.of == INPUT_GRADIENT:
            gradient = input_gradient(network, images, network(images).argmax(dim=1))
            return [normalize(function(gradient))]
        with AttentionTaps(network, find_attention(network, images)) as taps:
            network(images)
            return [normalize(function(block)) for block in taps.take()]


def _as_batch(model: nn.Module, x: Tensor) -> Tensor:
    """x as a batch [B, C, H, W]; a network of ours needs C = 3."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise DataError(f"x is {what}; it must be a float tensor of normalised images [B, 3, H, W].")
    images = x.unsqueeze(0) if x.dim() == 3 else x
    if images.dim() != 4 or (card_of(model) is not None and images.shape[1] != 3):
        raise DataError(f"x has the shape {list(x.shape)}; it must be images [B, 3, H, W], or one image [3, H, W].")
    return images


def _spread(maps: Tensor) -> Tensor:
    """Scale each map of [B, H, W] to [0, 1]; a map that is constant up to rounding becomes 0."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    is_even = high - low <= 1e-6 * high
    return torch.where(is_even, 0.0, (maps - low) / (high - low))


class Column(NamedTuple):
    """A column of overlays in a figure, for the stages of one size in all networks.

    `repeat` counts the earlier stages of this size in the same network.
    """

    height: int
    width: int
    repeat: int


class Row(NamedTuple):
    """A network in a figure: its role and name, and for each stage its maps [N, H, W] in [0, 1]."""

    role: str
    name: str
    maps: dict[Column, Tensor]


def attention_figure(
    student: nn.Module,
    images: Tensor,
    config: Settings = None,
    *,
    teacher: nn.Module | None = None,
    others: Mapping[str, nn.Module] | None = None,
    titles: Sequence[str] | None = None,
    max_images: int = 8,
) -> Figure:
    """A figure of attention maps: each image, and beside it a row of overlays for each network.

    Overlays of equal resolution are in one column, so that teacher and student are easy to compare. Colours range from
    the least attention in an image (dark) to the most (bright).

    Args:
        student: drawn by its stages, or the student's side of config's layers.
        images: normalised float images [B, 3, H, W], or one image [3, H, W].
        config: uses mean and std, to denormalise the images; layers overrides the stages; attention and
            attention_power.
        teacher: drawn above the student, by its stages or the teacher's side of layers.
        others: more networks by name, drawn below the student by their own stages.
        titles: a line above each image, such as its class.
        max_images: the most images to draw, from the first.

    Returns:
        a figure that is not registered with pyplot: nothing has to be closed, and no backend is changed.

    Raises:
        DataError: images is not a float tensor of at least one image.
        ConfigError: fewer titles than images, or layers names a module that a network does not have.
    """
    config = resolve_config(config)
    images = _as_batch(student, images)[:max_images].detach()
    if not len(images):
        raise DataError("there is no image to draw; give at least one, and a max_images of at least 1.")
    if titles is not None and len(titles) < len(images):
        raise ConfigError(f"titles has {len(titles)} lines for {len(images)} images; give one for each.")
    rows = _rows(student, teacher, others or {}, images, config)
    columns = sorted({column for row in rows for column in row.maps}, key=lambda c: (-c.height * c.width, c))
    colours = denormalise(images, config.mean, config.std)
    aspect = images.shape[3] / images.shape[2]
    page = Page(len(images), len(rows), len(columns), aspect, has_titles=titles is not None)
    for c, column in enumerate(columns):
        page.heading(c, _describe(column, rows))
    beneath = enlarge(colours, PIXELS // 2)
    for i, picture in enumerate(enlarge(colours)):
        page.photo(i, picture, titles[i] if titles is not None else None)
        for r, row in enumerate(rows):
            page.name(i, r, row.role, row.name)
            for column, maps in row.maps.items():
                page.overlay(i, r, columns.index(column), overlay(beneath[i], maps[i]))
    page.scale()
    return page.figure


def _rows(
    student: nn.Module, teacher: nn.Module | None, others: Mapping[str, nn.Module], images: Tensor, config: Config
) -> list[Row]:
    student_layers, teacher_layers = split_layers(config.layers)
    is_alone = teacher is None and not others
    draw = partial(_row, images=images, map_function=chosen_map_function(config))
    rows = [draw("" if is_alone else "student", student, layers=student_layers)]
    if teacher is not None:
        rows.insert(
            0, draw("teacher", teacher, images=preprocessing_of(teacher, config, images)(images), layers=teacher_layers)
        )
    return rows + [draw(name, model, layers=None) for name, model in others.items()]


def _row(
    role: str, model: nn.Module, *, images: Tensor, layers: Sequence[str] | None, map_function: MapFunction
) -> Row:
    card = card_of(model)
    name = card.name if card is not None else type(unwrapped(model)).__name__
    sizes: Counter[tuple[int, int]] = Counter()
    stages = {}
    for maps in _attention(model, images, layers, map_function):
        height, width = maps.shape[1:]
        stages[Column(height, width, sizes[height, width])] = _spread(maps).cpu()
        sizes[height, width] += 1
    return Row(role, name, stages)


def _describe(column: Column, rows: Sequence[Row]) -> str:
    """The resolution of a column, and its stage if that is the same in all networks that have it."""
    stages = {list(row.maps).index(column) for row in rows if column in row.maps}
    size = f"{column.height} \N{MULTIPLICATION SIGN} {column.width}"
    return f"stage {stages.pop()}:  {size}" if len(stages) == 1 else size


def figure_to_tensor(figure: Figure) -> Tensor:
    """Render a figure as an image uint8 [3, H, W], as TensorBoard's `add_image` takes it."""
    from PIL import Image

    with Image.open(BytesIO(png_of(figure, is_packed=False))) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).contiguous()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, or in the format of the path's suffix (.pdf, .svg, ...); missing folders are made.

    The file is written atomically.

    Raises:
        ValueError: matplotlib has no such format.
        WriteError: the file cannot be written; its previous version is unchanged.
    """
    drawn = BytesIO()
    figure.savefig(drawn, format=Path(path).suffix[1:] or "png")
    write_atomically(path, drawn.getbuffer(), setting="the output path")
