"""Filling a cache before training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from attention_transfer.progress import progress_bar
from attention_transfer.teacher.cache.store import Rows
from attention_transfer.teacher.cache.teacher import CachedTeacher


def prefill(teacher: CachedTeacher, device: torch.device, desc: str = "running the teacher") -> int:
    """Compute and store every output that the cache lacks, under a progress bar; resumable after an interruption.

    Args:
        teacher: with its cache; without one nothing is done.
        device: the teacher's.
        desc: of the progress bar.

    Returns:
        the number of images that the network was run for.
    """
    if teacher.cache is None:
        return 0
    missing = np.flatnonzero(~teacher.cache.present())
    with progress_bar(total=len(missing), desc=desc, unit="image") as bar:
        for rows in _chunks(missing, len(teacher.index.dataset), teacher.runner.chunk):
            teacher(teacher.index.batch(rows).to(device))
            bar.update(len(rows))
    return len(missing)


def _chunks(rows: Rows, samples: int, size: int) -> Iterator[Rows]:
    """Rows in chunks, none of which spans two views."""
    for view in np.unique(rows // samples).tolist():
        of_view = rows[rows // samples == view]
        for first in range(0, len(of_view), size):
            yield of_view[first : first + size]
