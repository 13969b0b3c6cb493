"""`python -m benchmarks.augmentation --cifar FOLDER --photos FOLDER`: ways to make a batch of views, side by side.

Time is of pictures that are decoded already, in one thread, as in a loader's worker. The error is that of the
pixels before colours change, against 8 x 8 lookups a pixel of the same view.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from attention_transfer.config import IMAGENET_MEAN, IMAGENET_STD
from attention_transfer.data import rendering
from attention_transfer.data.augmentation.geometry import matrices_of
from attention_transfer.data.decoding.decoder import Decoder, Picture
from attention_transfer.data.decoding.images import to_tensor
from attention_transfer.data.frame import Frame
from attention_transfer.data.views import LUMA, Augmentation, ViewParameters, colour_matrices, draw_views, grey_shares
from benchmarks.measuring.timing import processor, table, take_turns

Renderer = Callable[[Sequence[Picture], Sequence[ViewParameters], int], Tensor]
MEAN_COLOUR = (124, 116, 104)
_BILINEAR = Image.Resampling.BILINEAR


def pillow(pictures: Sequence[Picture], views: Sequence[ViewParameters], size: int) -> Tensor:
    """Image by image: resize of the crop, flip, rotation, colours, normalisation."""
    images = []
    for picture, view in zip(pictures, views, strict=True):
        image = pillow_crop(picture, view, size)
        if view.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if view.angle:
            image = image.rotate(view.angle, _BILINEAR, fillcolor=MEAN_COLOUR)
        if view.changes_colours:
            mean_grey = LUMA @ np.array(image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
            offsets = np.full((3, 1), grey_shares([view])[0] * mean_grey)
            colours = np.hstack([colour_matrices([view])[0], offsets])
            image = image.convert("RGB", matrix=tuple(colours.ravel().tolist()))
        images.append(to_tensor(image))
    return torch.stack(images)


def pillow_crop(picture: Picture, view: ViewParameters, size: int) -> Image.Image:
    """The crop of a view alone, antialiased."""
    height, width, _ = picture.shape
    left, top, right, bottom = view.box
    box = (left * width, top * height, right * width, bottom * height)
    return Image.fromarray(picture).resize((size, size), _BILINEAR, box=box)


def torchvision(pictures: Sequence[Picture], views: Sequence[ViewParameters], size: int) -> Tensor:
    """Image by image: transforms.v2 on 8-bit tensors; crops begin and end at whole pixels."""
    images = []
    for picture, view in zip(pictures, views, strict=True):
        image = torch.from_numpy(picture.transpose(2, 0, 1).copy())
        top, bottom = (round(y * picture.shape[0]) for y in view.box[1::2])
        left, right = (round(x * picture.shape[1]) for x in view.box[0::2])
        image = transforms.resized_crop(image, top, left, bottom - top, right - left, [size, size], antialias=True)
        if view.flip:
            image = transforms.horizontal_flip(image)
        if view.angle:
            fill = list(MEAN_COLOUR)
            image = transforms.rotate(image, view.angle, interpolation=InterpolationMode.BILINEAR, fill=fill)
        if view.changes_colours:
            image = transforms.adjust_brightness(image, view.brightness)
            image = transforms.adjust_contrast(image, view.contrast)
            image = transforms.adjust_saturation(image, view.saturation)
            image = transforms.adjust_hue(image, view.hue)
        images.append(transforms.normalize(image.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD)))
    return torch.stack(images)


def pillow_affine(pictures: Sequence[Picture], views: Sequence[ViewParameters], size: int) -> Tensor:
    """Pillow's one affine, image by image; colours and normalisation in the batch."""
    parts = []
    for picture, matrix in zip(pictures, matrices_of(views, (size, size)), strict=True):
        scale = np.array(picture.shape[1::-1]) / 2
        turn = matrix[:, :2] * scale[:, None] * 2 / size
        shift = (matrix[:, 2] + 1) * scale - turn.sum(axis=1) * size / 2
        affine = np.column_stack([turn, shift]).ravel().tolist()
        fill = MEAN_COLOUR
        image = Image.fromarray(picture).transform(
            (size, size), Image.Transform.AFFINE, affine, _BILINEAR, fillcolor=fill
        )
        parts.append(np.asarray(image))
    images = rendering._as_planes(np.stack(parts))
    if any(view.changes_colours for view in views):
        nowhere = torch.zeros(len(views), 1, size, size, dtype=torch.bool)
        images = rendering._change_colours(images, nowhere, views)
    return rendering._normalise(images, IMAGENET_MEAN, IMAGENET_STD)


def pillow_resize(pictures: Sequence[Picture], views: Sequence[ViewParameters], size: int) -> Tensor:
    """Pillow's resize of the crop, image by image; flip, rotation, colours and normalisation in the batch."""
    parts = [np.asarray(pillow_crop(picture, view, size)) for picture, view in zip(pictures, views, strict=True)]
    turns = [dataclasses.replace(view, box=(0.0, 0.0, 1.0, 1.0)) for view in views]
    return rendering.render_views(parts, turns, size)


def affine(
    pictures: Sequence[Picture], views: Sequence[ViewParameters], size: int, *, density: float = math.inf, grid: int = 1
) -> Tensor:
    """One affine of the batch, after a reduction to `density` pixels a pixel, with grid x grid lookups a pixel."""
    matrices = matrices_of(views, (size, size))
    frame, fine = Frame(size, size), Frame(size * grid, size * grid)
    parts = [rendering._reduce(*one, frame, density) for one in zip(pictures, views, matrices, strict=True)]
    if grid == 1:
        return rendering._render(parts, views, frame, IMAGENET_MEAN, IMAGENET_STD)[0]
    places = rendering._places(np.stack([matrix for _, matrix in parts]), fine)
    images = F.avg_pool2d(rendering._look_up([part for part, _ in parts], places), grid)
    outside = F.max_pool2d((places.abs().amax(dim=0) > 1).float().unsqueeze(1), grid) > 0
    if any(view.changes_colours for view in views):
        images = rendering._change_colours(images.masked_fill_(outside, 0), outside, views)
    return rendering._normalise(images, IMAGENET_MEAN, IMAGENET_STD).masked_fill_(outside, 0)


def ours(pictures: Sequence[Picture], views: Sequence[ViewParameters], size: int) -> Tensor:
    """What the loaders do."""
    return rendering.render_views(pictures, views, size)


RENDERERS: dict[str, Renderer] = {
    "Pillow, image by image": pillow,
    "transforms.v2, image by image": torchvision,
    "Pillow's affine, colours in the batch": pillow_affine,
    "Pillow's resize, the rest in the batch": pillow_resize,
    "one affine, not antialiased": affine,
    "one affine, 2 x 2 lookups": functools.partial(affine, grid=2),
    "one affine after a reduction (ours)": ours,
}


def decibels(
    render: Renderer, pictures: Sequence[Picture], views: Sequence[ViewParameters], size: int, truth: Tensor
) -> float:
    """Peak signal-to-noise ratio against `truth`, where the views show what is in their crops."""
    spread = 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1)
    error = (render(pictures, views, size) - truth) * spread
    turns = [ViewParameters(angle=view.angle) for view in views]
    places = rendering._places(matrices_of(turns, (size, size)), Frame(size, size))
    in_crop = (places.abs().amax(dim=0) < 1 - 4 / size).unsqueeze(1).expand_as(error)
    return 10 * math.log10(255**2 / float(error[in_crop].double().square().mean()))


def compare(title: str, pictures: Sequence[Picture], size: int, rounds: int) -> None:
    """Print the time and the error of each way."""
    views = draw_views(Augmentation(), 0, 0, range(len(pictures)))
    arms = {name: functools.partial(render, pictures, views, size) for name, render in RENDERERS.items()}
    table(title, take_turns(arms, rounds))

    views = [dataclasses.replace(v, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0) for v in views]
    truth = affine(pictures, views, size, grid=8)
    print("\n  error")
    densities = {
        f"one affine after a reduction to {density}": functools.partial(affine, density=density)
        for density in (1.0, 1.25, 1.5, 1.75, 2.0)
    }
    for name, render in {**RENDERERS, **densities}.items():
        print(f"  {name:44} {decibels(render, pictures, views, size, truth):10.1f} dB")


def files_of(folder: Path, count: int) -> list[Path]:
    """So many image files, spread over all that are below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if len(files) < count:
        raise SystemExit(f"{folder} has {len(files)} images below it; this needs {count}.")
    return files[:: len(files) // count][:count]


def draw_one_by_one(count: int) -> None:
    """What numbers alone cost where each image has a generator of its own."""
    for index in range(count):
        np.random.default_rng(np.random.SeedSequence((0, 0, index))).random(10).tolist()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, required=True, help="a folder with 32 x 32 images below it")
    parser.add_argument("--photos", type=Path, required=True, help="a folder with photos below it")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread, torch {torch.__version__}")
    for title, folder, size, count in (
        ("128 images of 32 x 32, at 32", arguments.cifar, 32, 128),
        ("32 photos, as they are kept, at 128", arguments.photos, 128, 32),
    ):
        decoder = Decoder(size, Augmentation())
        compare(title, [decoder(path) for path in files_of(folder, count)], size, arguments.rounds)
    numbers = {
        "a generator for each image, numbers alone": lambda: draw_one_by_one(128),
        "draw_views (ours)": lambda: draw_views(Augmentation(), 0, 0, range(128)),
    }
    table("Parameters of 128 views", take_turns(numbers, arguments.rounds))


if __name__ == "__main__":
    main()
