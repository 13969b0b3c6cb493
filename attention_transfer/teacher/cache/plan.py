"""Cache plan: which images a teacher sees in a run, in which views, and how often."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attention_transfer.data.dataset import ImageDataset
from attention_transfer.data.loading.loaders import own_dataset, own_sampler
from attention_transfer.data.loading.relabelled import Relabelled


@dataclass(frozen=True)
class CachePlan:
    """Cache plan: a data set, and how many views of each image a run uses for how many epochs.

    Attributes:
        role: train or val.
        dataset: the images.
        views: number of views of each image; 'warp'; or None for new ones in every epoch.
        epochs: of the whole run.
        is_partial: an epoch need not have every image, and may have one twice.
        positions: label i of the data set is positions[i] in the loader's batches, int64 [K]; None: the same.
    """

    role: str
    dataset: ImageDataset
    views: int | str | None
    epochs: int
    is_partial: bool = False
    positions: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """The label of each image in the loader's batches, int64 [N]; below 0 without one."""
        labels = torch.tensor(self.dataset.targets, dtype=torch.int64)
        if self.positions is None:
            return labels
        return torch.where(labels < 0, labels, self.positions[labels.clamp_min(0)])

    @property
    def repeats(self) -> bool:
        """Whether some output is used twice."""
        return self.is_partial or self.epochs > (self.views if isinstance(self.views, int) else 1)

    @property
    def teacher_epochs(self) -> str:
        """When the network runs if its outputs are cached, in words."""
        if self.views == "warp":
            return "once on each whole image and its mirror image, as they come up first"
        if self.is_partial:
            return "once on each image" + ("" if self.views == 1 else " and view") + ", as they come up first"
        count = min(self.epochs, self.views) if isinstance(self.views, int) else self.epochs
        return "in the first epoch alone" if count == 1 else f"in the first {count} epochs alone"

    @property
    def cost(self) -> str:
        """What running the network on new views costs, and what the other ways would save, in words."""
        images, epochs = len(self.dataset), self.epochs
        return (
            f"the teacher runs on new views of every image in every epoch, {images * epochs:,} images in all; "
            f"augment_views=4 would run it on {images * min(4, epochs):,}, augment_views='warp' on at most "
            f"{images * min(2, epochs):,}"
        )


def plan_for(role: str, loader: Iterable[Any], epochs: int, world_size: int) -> CachePlan | None:
    """The plan for a loader; None for one whose batches do not say which samples they hold.

    Args:
        role: train or val.
        loader: of that split.
        epochs: of the whole run.
        world_size: number of processes.
    """
    dataset, sampler = own_dataset(loader), own_sampler(loader, world_size)
    if dataset is None or sampler is None:
        return None
    positions = loader.positions if isinstance(loader, Relabelled) else None
    if dataset.augmentation is None:
        return CachePlan(role, dataset, 1, epochs, not sampler.has_every_sample, positions)
    views = "warp" if dataset.tells_matrices else sampler.views
    return CachePlan(role, dataset, views, epochs, not sampler.has_every_sample, positions)
