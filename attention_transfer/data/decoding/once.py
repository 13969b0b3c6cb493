"""Warnings that hold for many images and are logged for the first only."""

from __future__ import annotations

import logging

from torch.utils.data import get_worker_info

logger = logging.getLogger(__name__)

_logged: set[str] = set()


def warn_once(kind: str, sentence: str) -> None:
    """Log the first warning of its kind since `warn_anew`; of a loader's workers only the first logs."""
    worker = get_worker_info()
    if kind not in _logged and (worker is None or worker.id == 0):
        logger.warning("%s", sentence)
    _logged.add(kind)


def warn_anew() -> None:
    """Reset the logged kinds, so that other data are warned about again."""
    _logged.clear()
