"""Whether a memory still says what its teacher says: a fingerprint cannot see everything."""

from __future__ import annotations

import logging

import numpy as np

from attention_transfer.teacher.looking import TeacherRunner
from attention_transfer.teacher.looks import Looks
from attention_transfer.teacher.memory import AnswerMemory, Floats, Rows

logger = logging.getLogger(__name__)

TOLERANCE = 0.02
"""Greatest difference that other processors and numbers of threads may make: cells are 1 on average, and in bfloat16
two paths through the same network differ in the third digit."""


def agrees(memory: AnswerMemory, runner: TeacherRunner, looks: Looks) -> bool:
    """Ask the teacher once more for a batch of what the memory knows, and compare; True where nothing is known.

    An answer that differs in rounding alone, as another processor's may, is told and accepted.
    """
    rows = _some_known_rows(memory, looks, runner.chunk)
    maps, logits, found = memory.read(rows)
    rows, maps = rows[found], maps[found]
    if not len(rows):
        return True
    batch = looks.batch(rows)
    asked = batch.to(runner.device)
    new_maps, new_logits = runner.look(looks.images(asked, np.arange(len(rows))))
    difference = _difference(maps, memory.shape.encode_maps(new_maps))
    if logits is not None and new_logits is not None:
        new = new_logits.float().cpu().numpy()
        difference = max(difference, _difference(logits[found], new) / max(1.0, float(np.abs(new).max())))
    if 0 < difference <= TOLERANCE:
        logger.info(
            "the teacher's memory was filled on another processor or with another number of threads: the same answers, "
            "rounded otherwise (by up to %.2g); a run that fills it on is not bit-identical to one that did it all",
            difference,
        )
    return difference <= TOLERANCE


def _some_known_rows(memory: AnswerMemory, looks: Looks, count: int) -> Rows:
    """Rows of one view, spread over it."""
    known = np.flatnonzero(memory.present())
    if not len(known):
        return known
    samples = len(looks.dataset)
    known = known[known // samples == known[0] // samples]
    spread: Rows = known[:: max(1, len(known) // count)][:count]
    return spread


def _difference(one: Floats, other: Floats) -> float:
    if not one.size:
        return 0.0
    with np.errstate(invalid="ignore"):  # what is wrong may be infinite, and then the difference is no number
        return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).max())
