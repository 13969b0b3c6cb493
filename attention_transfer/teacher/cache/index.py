"""Cache index: which record belongs to which image of a batch, and which input the teacher needs to compute it."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from attention_transfer.data.batches import Batch, collate
from attention_transfer.data.dataset import ImageDataset
from attention_transfer.modules import handed_over
from attention_transfer.teacher.cache.grid import Grid
from attention_transfer.teacher.cache.store import Rows
from attention_transfer.teacher.cache.warp import is_mirrored, mirror, warp_maps

Maps = tuple[Tensor, ...]


class CacheIndex(Protocol):
    """Cache index: maps the images of a batch to records.

    Attributes:
        count: number of records.
        dataset: the data set that is cached.
        labels: of its images in the run's batches, int64 [samples]; below 0 without one.
    """

    count: int
    dataset: ImageDataset
    labels: Tensor

    def rows(self, batch: Batch) -> Rows:
        """The record [B] of each image of a batch."""
        ...

    def batch(self, rows: Rows) -> Batch:
        """The batch whose images have these records [n]; all of one view."""
        ...

    def images(self, batch: Batch, positions: Rows) -> Tensor:
        """The teacher's inputs [n, 3, H, W], normalised, for the images at some positions [n] of the batch."""
        ...

    def project_to_view(self, batch: Batch, maps: Maps) -> tuple[Maps, Maps | None]:
        """The stored maps [B, h, w] of each stage, aligned with the batch's own pixels.

        Returns:
            the maps [B, h, w], and their coverage [B, h, w]; None where they cover everything.
        """
        ...


class ViewIndex:
    """One record for each view of each sample: the teacher's input is the student's.

    Args:
        dataset: gives the views.
        labels: of its images in the run's batches, int64 [samples].
        views: of each sample.
    """

    def __init__(self, dataset: ImageDataset, labels: Tensor, views: int = 1) -> None:
        self.dataset = dataset
        self.labels = labels
        self.count = len(dataset) * views

    def rows(self, batch: Batch) -> Rows:
        """The record of each image: index + view * samples, [B]."""
        assert batch.indices is not None
        rows: Rows = batch.indices.numpy() + (batch.view or 0) * len(self.dataset)
        return rows

    def batch(self, rows: Rows) -> Batch:
        """The views with these records [n]."""
        keys = [divmod(row, len(self.dataset)) for row in rows.tolist()]
        batch = collate(self.dataset.__getitems__(keys), self.dataset.image_size)
        return replace(batch, labels=self.labels[batch.indices])

    def images(self, batch: Batch, positions: Rows) -> Tensor:
        """The batch's own images [n, 3, H, W] at some positions [n]."""
        return batch.images[handed_over(torch.from_numpy(positions), batch.images.device)]

    def project_to_view(self, batch: Batch, maps: Maps) -> tuple[Maps, Maps | None]:
        """The maps [B, h, w] as they are: the records are of the views themselves."""
        return maps, None


class WarpIndex:
    """Two records for each sample, its whole image and the mirror image; maps of views are warped from them.

    The mirror image has a record of its own, because a network's map of it is not the mirrored map.

    Args:
        dataset: gives the whole images.
        labels: of its images in the run's batches, int64 [samples].
        grids: the positions of the cells of each map on the image.
    """

    def __init__(self, dataset: ImageDataset, labels: Tensor, grids: list[Grid]) -> None:
        self.dataset = dataset
        self.labels = labels
        self.grids = grids
        self.count = 2 * len(dataset)

    def rows(self, batch: Batch) -> Rows:
        """The record of each image: index, + samples where the view is mirrored, [B]."""
        assert batch.indices is not None
        rows: Rows = batch.indices.numpy() + self._mirrored(batch) * len(self.dataset)
        return rows

    def batch(self, rows: Rows) -> Batch:
        """The whole images with these records [n], with the matrix of the image or of its mirror image."""
        mirrored, indices = np.divmod(rows, len(self.dataset))
        images = self.dataset.whole(indices.tolist())
        matrices = torch.eye(2, 3).repeat(len(rows), 1, 1)
        matrices[:, 0, 0] -= 2 * torch.from_numpy(mirrored)
        return Batch(images, self.labels[indices], torch.from_numpy(indices), 0, matrices)

    def images(self, batch: Batch, positions: Rows) -> Tensor:
        """The whole images [n, 3, H, W] behind the views at some positions [n], mirrored where the view is."""
        assert batch.indices is not None
        images = self.dataset.whole(batch.indices.numpy()[positions].tolist())
        mirrored = torch.from_numpy(self._mirrored(batch)[positions])
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return handed_over(images, batch.images.device)

    def project_to_view(self, batch: Batch, maps: Maps) -> tuple[Maps, Maps | None]:
        """The maps [B, h, w] warped to the views, and their coverage [B, h, w]; see `warp_maps`."""
        assert batch.matrices is not None
        matrices = torch.where(is_mirrored(batch.matrices)[:, None, None], mirror(batch.matrices), batch.matrices)
        matrices = handed_over(matrices, batch.images.device)
        pairs = [
            warp_maps(stage, matrices, grid, self.dataset.image_size)
            for stage, grid in zip(maps, self.grids, strict=True)
        ]
        return tuple(warped for warped, _ in pairs), tuple(coverage for _, coverage in pairs)

    def _mirrored(self, batch: Batch) -> np.ndarray:
        assert batch.matrices is not None
        mirrored: np.ndarray = is_mirrored(batch.matrices).numpy()
        return mirrored
