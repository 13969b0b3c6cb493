"""The cached teacher: outputs are read from the cache; those it lacks are computed and stored."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from attention_transfer.data.batches import Batch
from attention_transfer.errors import DataError
from attention_transfer.modules import handed_over
from attention_transfer.teacher.base import TeacherOutput
from attention_transfer.teacher.cache.index import CacheIndex
from attention_transfer.teacher.cache.store import Floats, OutputShape, Rows, TeacherCache
from attention_transfer.teacher.runner import FrozenRunner


class CachedTeacher:
    """A teacher with a cache: reads its outputs from there, and runs the network for those that are absent.

    An output just computed is rounded as it is stored, so that a run does not depend on how full the cache was.

    Args:
        runner: runs the network.
        index: which record belongs to which image.
        shape: of the outputs for one image.
        cache: closed by `close`; None stores nothing, and the outputs are the same.

    Attributes:
        hits: images so far whose outputs were in the cache.
        misses: images so far that the network was run for.
    """

    def __init__(
        self, runner: FrozenRunner, index: CacheIndex, shape: OutputShape, cache: TeacherCache | None = None
    ) -> None:
        self.runner = runner
        self.index = index
        self.shape = shape
        self.cache = cache
        self.hits = self.misses = 0

    def __call__(self, batch: Batch) -> TeacherOutput:
        """The teacher's signals for a batch of images [B, 3, H, W]: maps [B, h, w] of each stage, and logits [B, K].

        The outputs for a batch without indices are computed and not stored.

        Raises:
            DataError: the maps depend on the label, and an image has another in the batch than in the data set.
        """
        if batch.indices is None:
            return self.runner.run(batch.images, batch.labels)
        if self.shape.depends_on_label:
            self._check_labels(batch)
        stored, logits = self._rounded(batch) if self.cache is None else self._decoded(self.cache, batch)
        maps, coverage = self.index.project_to_view(batch, stored)
        return self.shape.output(maps, logits, coverage)

    def close(self) -> None:
        """Close the cache; from then on the network runs for everything."""
        cache, self.cache = self.cache, None
        if cache is not None:
            cache.close()

    def _check_labels(self, batch: Batch) -> None:
        """Check that labels [B] are the data set's, on the CPU: the cache is one of these labels."""
        assert batch.indices is not None
        if batch.labels.device.type == "cpu" and not torch.equal(batch.labels, self.index.labels[batch.indices]):
            raise DataError(
                "a batch has other labels than its data set, and the teacher's gradient maps depend on them; leave "
                "the labels as they are while a run goes on, or set teacher_cache='off' in a loop of your own."
            )

    def _rounded(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Where nothing is kept: the outputs never leave the device, so that the host does not wait for them."""
        positions = np.arange(len(batch.labels))
        self.misses += len(positions)
        images = self.index.images(batch, positions)
        output = self.runner.run(images, batch.labels)
        logits = None if output.logits is None else output.logits.float()
        return self.shape.rounded_maps(self.shape.maps_of(output)), logits

    def _decoded(self, cache: TeacherCache, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor | None]:
        maps, logits = self._read(cache, batch)
        device = batch.images.device
        decoded = self.shape.decode_maps(maps, device)
        return decoded, None if logits is None else handed_over(torch.from_numpy(logits), device)

    def _read(self, cache: TeacherCache, batch: Batch) -> tuple[Floats, Floats | None]:
        rows = self.index.rows(batch)
        maps, logits, found = cache.read(rows)
        missing = np.flatnonzero(~found)
        self.hits += len(rows) - len(missing)
        if len(missing):
            self._fill_missing(batch, rows, missing, maps, logits)
        return maps, logits

    def _fill_missing(self, batch: Batch, rows: Rows, missing: Rows, maps: Floats, logits: Floats | None) -> None:
        """Compute what is missing, store it, and put it into `maps` and `logits`."""
        assert self.cache is not None
        self.misses += len(missing)
        new_maps, new_logits = self._run_teacher(batch, missing)
        if self.cache.is_writable:
            self.cache.keep(rows[missing], new_maps, new_logits)
            # Another process may have stored its outputs first: all processes then use those.
            stored_maps, stored_logits, found = self.cache.read(rows[missing])
            new_maps[found] = stored_maps[found]
            if new_logits is not None and stored_logits is not None:
                new_logits[found] = stored_logits[found]
        maps[missing] = new_maps
        if logits is not None and new_logits is not None:
            logits[missing] = new_logits

    def _run_teacher(self, batch: Batch, positions: Rows) -> tuple[Floats, Floats | None]:
        labels = batch.labels[handed_over(torch.from_numpy(positions), batch.labels.device)]
        output = self.runner.run(self.index.images(batch, positions), labels)
        return self.shape.encode_maps(self.shape.maps_of(output)), _on_cpu(output.logits)


def _on_cpu(logits: Tensor | None) -> Floats | None:
    return None if logits is None else logits.float().cpu().numpy()
