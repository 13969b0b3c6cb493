"""The first loss that was not a finite number, noticed without waiting for the device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_transfer.config import Config
from attention_transfer.training.objective import Losses


class BadStep(NamedTuple):
    """The first step whose loss was not a finite number."""

    batch: int
    component: str
    values: dict[str, float]


class FiniteWatch:
    """Remembers the first batch with a bad total on the device, so that watching costs no synchronisation.

    Args:
        device: where the losses are.
        config: components whose weight is 0 are no part of the total, and so are not to blame.
    """

    def __init__(self, device: torch.device, config: Config) -> None:
        self._config = config
        self._first = torch.full((), -1, dtype=torch.int64, device=device)
        self._values: Tensor | None = None

    def look(self, losses: Losses, batch: int) -> None:
        """Look at one batch."""
        with torch.no_grad():
            values = torch.stack([losses.total, losses.classification, losses.kd, *losses.per_stage]).float()
            is_first_bad = (self._first < 0) & ~losses.total.isfinite()
            self._first = torch.where(is_first_bad, batch, self._first)
            self._values = values if self._values is None else torch.where(is_first_bad, values, self._values)

    def bad_step(self) -> BadStep | None:
        """The first bad batch, or None; waits for the device."""
        if self._values is None or int(self._first) < 0:
            return None
        names = ["total", "classification", "kd"]
        names += [f"attention_stage_{i}" for i in range(len(self._values) - len(names))]
        values: dict[str, Any] = dict(zip(names, self._values.tolist(), strict=True))
        weights = {"classification": 1.0, "kd": self._config.alpha}
        to_blame = [name for name in names[1:] if weights.get(name, self._config.beta) > 0]
        bad = [name for name in to_blame if not math.isfinite(values[name])]
        return BadStep(int(self._first), bad[0] if bad else "total", values)
