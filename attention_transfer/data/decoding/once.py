"""Warnings of what holds for many images and is said of the first alone."""

from __future__ import annotations

import logging

from torch.utils.data import get_worker_info

logger = logging.getLogger(__name__)

_said: set[str] = set()


def warn_once(kind: str, sentence: str) -> None:
    """Log the first sentence of its kind since `warn_anew`; of several workers of a loader the first alone does."""
    worker = get_worker_info()
    if kind not in _said and (worker is None or worker.id == 0):
        logger.warning("%s", sentence)
    _said.add(kind)


def warn_anew() -> None:
    """Forget what was said: of other data it is said again."""
    _said.clear()
