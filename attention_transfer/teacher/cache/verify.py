"""Check of a cache against its teacher: a fingerprint cannot see everything, such as changed code of the network."""

from __future__ import annotations

import logging

import numpy as np

from attention_transfer.cache.records import Records
from attention_transfer.features.signals import TeacherOutput
from attention_transfer.teacher.cache.index import CacheIndex
from attention_transfer.teacher.cache.store import Floats, Rows, TeacherCache
from attention_transfer.teacher.runner import FrozenRunner

logger = logging.getLogger(__name__)

TOLERANCES = {"fp32": 0.004, "bf16": 0.03, "fp16": 0.01}
"""Greatest difference that other processors and numbers of threads may make, by the number format of the network: cells
are 1 on average and stored in float16, and two paths through a network in bfloat16 differ in the third digit."""


def matches_teacher(cache: TeacherCache, runner: FrozenRunner, index: CacheIndex, precision: str) -> bool:
    """Whether the teacher still puts out what is cached: a sample of records is recomputed and compared.

    Records that differ in rounding alone, as from another processor, are accepted, and this is logged. An empty cache
    matches.

    Args:
        cache: maps, and logits if any.
        runner: runs the network.
        index: gives the images of the records.
        precision: number format of the network.
    """
    differences = [_maps_differ(cache, runner, index)]
    if cache.logits is not None:
        differences.append(_logits_differ(cache.logits, runner, index))
    # written so that NaN counts as a mismatch
    is_right = all(difference <= TOLERANCES[precision] for difference in differences)
    if is_right and max(differences) > 0:
        logger.info(
            "the teacher's cache was filled on another processor or with another number of threads: the same outputs, "
            "rounded otherwise (by up to %.2g); a run that fills the rest is not bit-identical to one that fills all",
            max(differences),
        )
    return is_right


def _maps_differ(cache: TeacherCache, runner: FrozenRunner, index: CacheIndex) -> float:
    rows, maps = _sample(cache.maps, index, runner.chunk, cache.shape.map_type)
    if not len(rows):
        return 0.0
    output = _recomputed(rows, runner, index)
    return _difference(maps, cache.shape.encode_maps(cache.shape.maps_of(output)))


def _logits_differ(records: Records, runner: FrozenRunner, index: CacheIndex) -> float:
    rows, logits = _sample(records, index, runner.chunk, np.float32)
    if not len(rows):
        return 0.0
    new = _recomputed(rows, runner, index).logits
    assert new is not None
    recomputed = new.float().cpu().numpy()
    return _difference(logits, recomputed) / max(1.0, float(np.abs(recomputed).max()))


def _recomputed(rows: Rows, runner: FrozenRunner, index: CacheIndex) -> TeacherOutput:
    batch = index.batch(rows).to(runner.device)
    return runner.run(index.images(batch, np.arange(len(rows))), batch.labels)


def _sample(records: Records, index: CacheIndex, count: int, kind: type) -> tuple[Rows, Floats]:
    """Up to `count` intact rows of one view, spread over it: their indices [n] and their contents [n, numbers]."""
    rows = np.flatnonzero(records.present())
    samples = len(index.dataset)
    if len(rows):
        rows = rows[rows // samples == rows[0] // samples]
        rows = rows[:: max(1, len(rows) // count)][:count]
    contents, found = records.read_equal(rows, kind)
    return rows[found], contents[found]


def _difference(one: Floats, other: Floats) -> float:
    with np.errstate(invalid="ignore"):  # corrupt records may hold infinities, whose difference is NaN
        return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).max())
