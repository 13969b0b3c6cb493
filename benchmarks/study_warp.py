"""How near are warped maps of whole images to the teacher's maps of the views themselves?

    python -m benchmarks.study_warp --data FOLDER --teacher cifar10-jpeg-resnet56.pth --image-size 32

prints, for each stage and each change of the image, the mean cosine between the two maps of an image (where the warped
one is covered), and beside it the cosine with the warped map of another image: what looking anywhere in the middle
would get.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attention_transfer import load_teacher_model, prepare_dataloaders
from attention_transfer.data.dataset import ImageDataset
from attention_transfer.data.rendering import render_views, view_matrices
from attention_transfer.data.views import Augmentation, ViewParameters, draw_views
from attention_transfer.features.maps import SUM_OF_SQUARES
from attention_transfer.features.signals import Needs
from attention_transfer.features.stages.choose import choose_stages
from attention_transfer.teacher.cache.grid import find_grids
from attention_transfer.teacher.cache.warp import is_mirrored, mirror, warp_maps
from attention_transfer.teacher.runner import FrozenRunner

Views = list[ViewParameters]


def changes(count: int) -> dict[str, Views]:
    """Views that differ from the whole image in one respect, and in all of them."""
    numbers = np.random.default_rng(0).random((count, 2)).tolist()
    return {
        "nothing": [ViewParameters()] * count,
        "flip": [ViewParameters(flip=True)] * count,
        "shift, crops of 0.85 sides": [
            ViewParameters(box=(0.15 * x, 0.15 * y, 0.15 * x + 0.85, 0.15 * y + 0.85)) for x, y in numbers
        ],
        "scale, middles of 0.67 to 1": [
            ViewParameters(box=(e, e, 1 - e, 1 - e)) for e in (0.165 * x for x, _ in numbers)
        ],
        "rotation, up to 10 degrees": [ViewParameters(angle=20 * x - 10) for x, _ in numbers],
        "colours alone": [
            ViewParameters(brightness=0.8 + 0.4 * x, contrast=0.8 + 0.4 * y, saturation=0.8 + 0.4 * x)
            for x, y in numbers
        ],
        "all of the default augmentation": draw_views(Augmentation(), 0, 0, range(count)),
    }


def cosines(one: Tensor, other: Tensor) -> float:
    """Mean cosine of maps [B, h, w], image by image."""
    return float(torch.cosine_similarity(one.flatten(1), other.flatten(1), dim=1).mean())


def measure(dataset: ImageDataset, runner: FrozenRunner, views: Views) -> list[tuple[float, float]]:
    """(cosine, cosine with another image's) of each stage."""
    indices = np.linspace(0, len(dataset) - 1, len(views)).round().astype(int).tolist()
    size = dataset.image_size
    whole = dataset.whole(indices)
    seen = render_views([dataset.picture(i) for i in indices], views, size, dataset.mean, dataset.std)
    matrices = view_matrices(views, size)
    mirrored = is_mirrored(matrices)[:, None, None]
    shown = torch.where(mirrored[..., None], whole.flip(3), whole)
    grids = find_grids(runner.network, whole[:1], runner.stages)
    of_whole, of_views = (runner.run(images).maps(SUM_OF_SQUARES) for images in (shown, seen))
    unmirrored = torch.where(mirrored, mirror(matrices), matrices)
    found = []
    for maps, truth, grid in zip(of_whole, of_views, grids, strict=True):
        warped, coverage = warp_maps(maps, unmirrored, grid, size)
        found.append((cosines(warped, truth * coverage), cosines(warped.roll(1, 0), truth * coverage.roll(1, 0))))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="an image folder")
    parser.add_argument("--teacher", required=True, help="the teacher's checkpoint")
    parser.add_argument("--teacher-arch", default=None)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=500)
    options = parser.parse_args(arguments)

    train, *_ = prepare_dataloaders(options.data, augment=True, num_workers=0, image_size=options.image_size)
    dataset = train.dataset
    assert isinstance(dataset, ImageDataset)
    teacher = load_teacher_model(options.teacher, device="cpu", teacher_arch=options.teacher_arch)
    images = dataset.whole(range(8))
    stages = choose_stages(teacher, images).stages
    needs = Needs(maps=(SUM_OF_SQUARES,))
    runner = FrozenRunner(teacher, stages, images, needs=needs, memory_format=torch.channels_last)
    count = min(options.images, len(dataset))
    print(f"{count} images; cosine with the true map of the view (with another image's warped map)")
    print(f"{'':34}" + "".join(f"{name:>20}" for name in (stage.name for stage in stages)))
    for what, views in changes(count).items():
        stages = measure(dataset, runner, views)
        print(f"{what:34}" + "".join(f"{f'{own:.3f} ({other:.3f})':>20}" for own, other in stages))


if __name__ == "__main__":
    main()
