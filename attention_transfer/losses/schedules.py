"""How the weight of a loss term changes over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["constant", "linear", "cosine", "warmup"]


@dataclass(frozen=True)
class WeightSchedule:
    """A factor in [0, 1] on a weight, as a function of the epoch and nothing else: a resumed run needs no state of it.

    Attributes:
        kind: 'constant': 1 throughout; 'linear', 'cosine': from 1 at the start to 0 at the end of the run; 'warmup':
            rises linearly from 0 at the start to 1, and stays there.
        epochs: of the run.
        rise: epochs over which 'warmup' rises.

    Example:
        >>> [WeightSchedule("linear", epochs=10)(epoch) for epoch in (0, 2.5, 10)]
        [1.0, 0.75, 0.0]
    """

    kind: Kind = "constant"
    epochs: float = 1.0
    rise: float = 0.1

    def __call__(self, epoch: float) -> float:
        """The factor after `epoch` epochs, which may have a fraction."""
        done = min(max(epoch / self.epochs, 0.0), 1.0)
        match self.kind:
            case "constant":
                return 1.0
            case "linear":
                return 1 - done
            case "cosine":
                return (1 + math.cos(math.pi * done)) / 2
            case "warmup":
                return risen(epoch, self.rise)

    @property
    def varies(self) -> bool:
        """Whether the factor depends on the epoch."""
        return self.kind != "constant"


def risen(epoch: float, rise: float) -> float:
    """A linear rise from 0 to 1 over the first `rise` epochs, min(epoch / rise, 1); 1 throughout where that is 0."""
    return min(max(epoch, 0.0) / rise, 1.0) if rise > 0 else 1.0


CONSTANT = WeightSchedule()
"""The factor 1."""
