"""AT: the attention-transfer loss, equation 2 of Zagoruyko & Komodakis (ICLR 2017), in three scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attention_transfer.errors import ConfigError
from attention_transfer.features.maps import SUM_OF_SQUARES, MapFunction, energy
from attention_transfer.features.pairing import pair_stages
from attention_transfer.features.signals import Needs
from attention_transfer.losses.map_distance import Reduction, map_distance, size_of
from attention_transfer.losses.schedules import CONSTANT, WeightSchedule
from attention_transfer.losses.term import LossInputs, LossTerm


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """AT: the sum over paired stages of the mean squared difference of their attention maps.

    Args:
        student: features [B, C, H, W] of each stage, shallow to deep.
        teacher: features [B, C, H, W] of the teacher's stages; channels and sizes may differ from the student's.

    Returns:
        a scalar, not negative; 0 where all paired attention maps are equal.

    Raises:
        ValueError: no pair of stages is larger than 1x1.

    Example:
        >>> stages = [torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)]
        >>> float(attention_loss(stages, stages))
        0.0
    """
    student_maps, teacher_maps = [energy(x) for x in student], [energy(x) for x in teacher]
    pairs = pair_stages([size_of(x) for x in student_maps], [size_of(x) for x in teacher_maps])
    distances = [
        map_distance(student_maps[pair.student], teacher_maps[pair.teacher], pair.size)
        for pair in pairs
        if pair.has_signal
    ]
    if not distances:
        raise ValueError("no pair of stages is larger than 1x1, so there is no attention to compare.")
    return torch.stack(distances).sum()


class AttentionTransfer(LossTerm):
    """AT as a term of the loss: the sum over paired stages of `map_distance`, each times its weight.

    Args:
        weight: beta.
        map_function: the kind of attention map.
        stage_weights: one number for each compared pair, shallow to deep, not negative; None: all 1.
        reduction: of a batch; see `map_distance`.
        schedule: of beta.

    Raises:
        ConfigError: in `is_silent`: with a weight above 0 no pair of stages is larger than 1x1; or there are more or
            fewer stage weights than pairs.
    """

    name = "attention"

    def __init__(
        self,
        weight: float,
        map_function: MapFunction = SUM_OF_SQUARES,
        stage_weights: Sequence[float] | None = None,
        reduction: Reduction = "mean",
        schedule: WeightSchedule = CONSTANT,
    ) -> None:
        super().__init__(weight, Needs(maps=(map_function,), epoch=schedule.varies))
        self.map_function = map_function
        self.stage_weights = stage_weights
        self.reduction = reduction
        self.schedule = schedule

    def weight_at(self, epoch: float) -> float:
        return self.weight * self.schedule(epoch)

    def is_silent(self, inputs: LossInputs) -> bool:
        """Whether AT is 0: student or teacher has no maps, or at weight 0 no pair of stages is larger than 1x1.

        Raises:
            ConfigError: the weight is above 0, both have maps, and no pair of stages is larger than 1x1; or there are
                more or fewer stage weights than pairs.
        """
        student, teacher = inputs.student.maps(self.map_function), inputs.teacher.maps(self.map_function)
        if not student or not teacher:
            return True
        pairs = inputs.pairs_of(self.map_function)
        if not pairs and self.weight > 0:
            raise ConfigError(
                "beta > 0, but no pair of stages is larger than 1x1: the images are too small for these networks; "
                "enlarge image_size, name shallower modules in layers, or set beta=0."
            )
        if pairs and self.stage_weights is not None and len(self.stage_weights) != len(pairs):
            raise ConfigError(
                f"stage_weights has {len(self.stage_weights)} numbers, but {len(pairs)} pairs of stages are compared "
                f"(at {', '.join(f'{h}x{w}' for *_, (h, w) in pairs)}); give one for each, shallow to deep."
            )
        return not pairs

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        """{"attention": AT, "attention_stage_0": the first pair's part, ...}, scalars [], without beta.

        The stages' parts are without their weights; AT is the sum of their products with them. They are computed from
        the maps [B, H, W] of student and teacher, and the coverage of the teacher's; an image without a map of the
        student's is left out as well.
        """
        student, maps = inputs.student.maps(self.map_function), inputs.teacher.maps(self.map_function)
        mine, theirs = inputs.student[self.map_function.signal], inputs.teacher[self.map_function.signal]
        coverage: tuple[Tensor | None, ...] = theirs.coverage or (None,) * len(maps)
        if mine.coverage is not None:
            # of the input's gradient, known for an image as a whole
            known = mine.coverage[0].flatten(1).amin(dim=1)[:, None, None]
            both = zip(coverage, maps, strict=True)
            coverage = tuple(known.expand_as(x) if cells is None else cells * known for cells, x in both)
        stages = [
            map_distance(student[s], maps[t], size, mask=coverage[t], reduction=self.reduction)
            for s, t, size in inputs.pairs_of(self.map_function)
        ]
        weighted = stages
        if self.stage_weights is not None:
            weighted = [weight * stage for weight, stage in zip(self.stage_weights, stages, strict=True)]
        return {self.name: torch.stack(weighted).sum(), **{f"{self.name}_stage_{i}": x for i, x in enumerate(stages)}}
