"""Whether a memory still says what its teacher says: a fingerprint cannot see everything."""

from __future__ import annotations

import logging

import numpy as np

from attention_transfer.cache.records import Records
from attention_transfer.teacher.cache.index import CacheIndex
from attention_transfer.teacher.cache.store import Floats, Rows, TeacherCache, read_rows
from attention_transfer.teacher.runner import FrozenRunner

logger = logging.getLogger(__name__)

TOLERANCES = {"fp32": 0.004, "bf16": 0.03, "fp16": 0.01}
"""Greatest difference that other processors and numbers of threads may make, by the number format of the network: cells
are 1 on average and kept in float16, and two paths through a network in bfloat16 differ in the third digit."""


def matches_teacher(cache: TeacherCache, runner: FrozenRunner, index: CacheIndex, precision: str) -> bool:
    """Ask the teacher once more for some of what the memory knows, and compare; True where nothing is known.

    An answer that differs in rounding alone, as another processor's may, is told and accepted.

    Args:
        memory: maps, and logits if any.
        runner: runs the network.
        looks: gives the images.
        precision: number format of the network.
    """
    differences = [_maps_differ(cache, runner, index)]
    if cache.logits is not None:
        differences.append(_logits_differ(cache.logits, runner, index))
    # so that what is no number is no agreement
    is_right = all(difference <= TOLERANCES[precision] for difference in differences)
    if is_right and max(differences) > 0:
        logger.info(
            "the teacher's memory was filled on another processor or with another number of threads: the same answers, "
            "rounded otherwise (by up to %.2g); a run that fills it on is not bit-identical to one that did it all",
            max(differences),
        )
    return is_right


def _maps_differ(cache: TeacherCache, runner: FrozenRunner, index: CacheIndex) -> float:
    rows, maps = _known(cache.maps, index, runner.chunk, cache.shape.map_type)
    if not len(rows):
        return 0.0
    output = runner.run(index.images(index.batch(rows).to(runner.device), np.arange(len(rows))))
    return _difference(maps, cache.shape.encode_maps(cache.shape.maps_of(output)))


def _logits_differ(records: Records, runner: FrozenRunner, index: CacheIndex) -> float:
    rows, logits = _known(records, index, runner.chunk, np.float32)
    if not len(rows):
        return 0.0
    new = runner.run(index.images(index.batch(rows).to(runner.device), np.arange(len(rows)))).logits
    assert new is not None
    misses = new.float().cpu().numpy()
    return _difference(logits, misses) / max(1.0, float(np.abs(misses).max()))


def _known(records: Records, index: CacheIndex, count: int, kind: type) -> tuple[Rows, Floats]:
    """Whole rows of one view, spread over it, and what they hold."""
    known = np.flatnonzero(records.present())
    samples = len(index.dataset)
    if len(known):
        known = known[known // samples == known[0] // samples]
        known = known[:: max(1, len(known) // count)][:count]
    contents, found = read_rows(records, known, kind)
    return known[found], contents[found]


def _difference(one: Floats, other: Floats) -> float:
    with np.errstate(invalid="ignore"):  # what is wrong may be infinite, and then the difference is no number
        return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).max())
