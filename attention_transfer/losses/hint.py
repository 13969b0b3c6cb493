"""Hints: the student's features, through a trained projector, are to be the teacher's; Romero et al., ICLR 2015."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.signals import FEATURES, Needs
from attention_transfer.losses.map_distance import pool, whole_cells
from attention_transfer.losses.term import LossInputs, LossTerm


def hint_distance(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of features of one size.

    Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3, which has half the sum of the squares: the mean
    keeps the scale independent of the network's size.

    Args:
        student: projected features [B, C, H, W].
        teacher: features [B, C, H, W].
        mask: [B, H, W], 1 in the cells to compare, and 0 elsewhere; None compares all of them.

    Returns:
        a scalar, not negative: the mean over all B C H W numbers, compared or not.
    """
    difference = student - teacher
    return (difference if mask is None else difference * mask.unsqueeze(1)).square().mean()


class Hint(LossTerm):
    """Hints as a term of the loss: the sum over paired stages of `hint_distance`, at the smaller size of each side.

    The student's features go through a 1x1 convolution for each pair, to the teacher's number of channels; it is
    trained with the student, saved and resumed. Features are too large to cache: the teacher runs on every batch.

    Args:
        weight: of the term.

    Raises:
        ConfigError: in `build`, no pair of stages is larger than 1x1; in `is_silent`, it was never called.
    """

    name = "hint"

    def __init__(self, weight: float) -> None:
        super().__init__(weight, Needs(features=True))
        self.projectors = nn.ModuleList()

    def build(self, inputs: LossInputs) -> None:
        student, teacher = inputs.student.stages(FEATURES), inputs.teacher.stages(FEATURES)
        if not inputs.pairs:
            raise ConfigError(
                "hint > 0, but student and teacher have no pair of stages larger than 1x1 to compare; name modules in "
                "layers, or set hint=0."
            )
        self.projectors = nn.ModuleList(
            nn.Conv2d(student[s].shape[1], teacher[t].shape[1], kernel_size=1) for s, t, _ in inputs.pairs
        )

    def is_silent(self, inputs: LossInputs) -> bool:
        """Whether the term is 0: there is no teacher.

        Raises:
            ConfigError: the projectors were not built, or for another number of pairs.
        """
        if super().is_silent(inputs):
            return True
        if len(self.projectors) != len(inputs.pairs):
            raise ConfigError(
                f"the hint has {len(self.projectors)} projectors for {len(inputs.pairs)} pairs of stages; train_at "
                "builds them, for images of one size."
            )
        return False

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        """{"hint": their sum, "hint_stage_0": of the first pair, ...}, unweighted scalars []."""
        student, teacher = inputs.student.stages(FEATURES), inputs.teacher.stages(FEATURES)
        coverage: tuple[Tensor | None, ...] = inputs.teacher[FEATURES].coverage or (None,) * len(teacher)
        stages = []
        for projector, (s, t, size) in zip(self.projectors, inputs.pairs, strict=True):
            # a 1x1 convolution and the mean over cells may change places: pooled first, it has less to do
            projected = projector(pool(student[s], size))
            cells = coverage[t]
            mask = None if cells is None else whole_cells(cells, size).to(projected.dtype)
            stages.append(hint_distance(projected, pool(teacher[t], size), mask))
        return {self.name: torch.stack(stages).sum(), **{f"{self.name}_stage_{i}": x for i, x in enumerate(stages)}}
