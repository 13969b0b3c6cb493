"""The teacher around its memory: what was answered once is read, the rest is asked and kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from attention_transfer.data.batches import Batch
from attention_transfer.teacher.base import TeacherOutput
from attention_transfer.teacher.cache.index import CacheIndex
from attention_transfer.teacher.cache.store import Floats, OutputShape, Rows, TeacherCache
from attention_transfer.teacher.runner import FrozenRunner


class CachedTeacher:
    """Answers from memory, and runs the network for what is not there.

    Whether an answer was kept or has just been made, the student hears it as it is kept, rounded: so a run does not
    depend on who has filled the memory, and how far.

    Args:
        runner: runs the network.
        looks: which record answers for which image.
        shape: of an answer.
        memory: where answers are kept, closed by `close`; None keeps none, and answers just the same.

    Attributes:
        recalled: images that were answered from memory so far; asked: those that the network was run for.
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
        """What the teacher says of the images of `batch`.

        A batch that does not tell which samples it holds is looked at, and its answer not kept.
        """
        if batch.indices is None:
            return self.runner.run(batch.images)
        kept_maps, kept_logits = self._recall(batch)
        device = batch.images.device
        maps, coverage = self.index.project_to_view(batch, self.shape.decode_maps(kept_maps, device))
        logits = None if kept_logits is None else torch.from_numpy(kept_logits).to(device)
        return self.shape.output(maps, logits, coverage)

    def close(self) -> None:
        """Close the cache; from then on the network runs for everything."""
        cache, self.cache = self.cache, None
        if cache is not None:
            cache.close()

    def _recall(self, batch: Batch) -> tuple[Floats, Floats | None]:
        rows = self.index.rows(batch)
        if self.cache is None:
            self.misses += len(rows)
            return self._ask(batch, np.arange(len(rows)))
        maps, logits, found = self.cache.read(rows)
        missing = np.flatnonzero(~found)
        self.hits += len(rows) - len(missing)
        if len(missing):
            self._fill_in(batch, rows, missing, maps, logits)
        return maps, logits

    def _fill_in(self, batch: Batch, rows: Rows, missing: Rows, maps: Floats, logits: Floats | None) -> None:
        """Ask for what is missing, keep it, and put it into `maps` and `logits`."""
        assert self.cache is not None
        self.misses += len(missing)
        new_maps, new_logits = self._ask(batch, missing)
        if self.cache.is_writable:
            self.cache.keep(rows[missing], new_maps, new_logits)
            # Another process may have been faster: its answer is the one that everybody hears.
            kept_maps, kept_logits, kept = self.cache.read(rows[missing])
            new_maps[kept] = kept_maps[kept]
            if new_logits is not None and kept_logits is not None:
                new_logits[kept] = kept_logits[kept]
        maps[missing] = new_maps
        if logits is not None and new_logits is not None:
            logits[missing] = new_logits

    def _ask(self, batch: Batch, positions: Rows) -> tuple[Floats, Floats | None]:
        output = self.runner.run(self.index.images(batch, positions))
        return self.shape.encode_maps(self.shape.maps_of(output)), _on_cpu(output.logits)


def _on_cpu(logits: Tensor | None) -> Floats | None:
    return None if logits is None else logits.float().cpu().numpy()
