"""A stage: a module of a network, and how its output is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from attention_transfer.networks.architecture import Size
from attention_transfer.networks.readout import Readout
from attention_transfer.networks.registry import readout_of

MOST_STAGES = 4


@dataclass(frozen=True)
class Stage:
    """A module whose output is a stage's features.

    Attributes:
        name: of the module, as in `network.named_modules()`.
        readout: from its output to features [B, C, H, W].
        size: (H, W) of the features in the pass by which it was found; None where none was needed.
    """

    name: str
    readout: Readout
    size: Size | None = None

    @property
    def label(self) -> str:
        """Name and readout, as in "layer1 (NCHW, 32x32)"."""
        size = "" if self.size is None else f", {self.size[0]}x{self.size[1]}"
        return f"{self.name} ({self.readout.name}{size})"


def in_words(stages: Sequence[Stage]) -> str:
    """Stages in a line, shallow to deep."""
    return "; ".join(stage.label for stage in stages)


def as_stages(model: nn.Module, stages: Sequence[Stage | str]) -> tuple[Stage, ...]:
    """Stages as they are, and module names with the network's registered readout (NCHW for a network without one)."""
    return tuple(each if isinstance(each, Stage) else Stage(each, readout_of(model)) for each in stages)


class Choice(NamedTuple):
    """Stages, and what they were chosen from.

    Attributes:
        stages: to compare, shallow to deep.
        candidates: all that could be compared, shallow to deep.
    """

    stages: tuple[Stage, ...]
    candidates: tuple[Stage, ...]


def deepest_of_each_size(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages to compare, out of all that a network has, shallow to deep.

    In a network of one resolution four at equal depths; else the deepest of each resolution, and of those the last
    four. Stages of 1x1 carry no attention and are left out.
    """
    seen = [stage for stage in stages if stage.size not in (None, (1, 1))]
    by_size = {stage.size: stage for stage in seen}
    if len(by_size) == 1:
        count = min(MOST_STAGES, len(seen))
        return tuple(seen[(k + 1) * len(seen) // count - 1] for k in range(count))
    last = set(map(id, by_size.values()))
    return tuple(stage for stage in seen if id(stage) in last)[-MOST_STAGES:]
