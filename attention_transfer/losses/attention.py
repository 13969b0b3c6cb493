"""AT: the attention-transfer loss, equation 2 of Zagoruyko & Komodakis (ICLR 2017), mean-squared form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from attention_transfer.errors import ConfigError
from attention_transfer.features.maps import SUM_OF_SQUARES, MapFunction, Size, at_least_float32, energy
from attention_transfer.features.pairing import common_size, pair_stages
from attention_transfer.features.signals import Needs
from attention_transfer.losses.term import LossInputs, LossTerm


def map_distance(student: Tensor, teacher: Tensor, size: Size | None = None, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of two batches of maps, pooled to one size and normalised.

    Both sides are average-pooled to `size`, then normalised. As normalising only scales the map of each
    image, the result does not depend on whether the maps were normalised before.

    Args:
        student: [B, Hs, Ws], not negative.
        teacher: [B, Ht, Wt], not negative.
        size: (H, W) at which to compare; None takes the smaller of each side.
        mask: [B, Ht, Wt], 1 where the teacher's map is valid and 0 elsewhere. Both sides are compared only in the cells
            of `size` that lie wholly where it is 1; an image without such a cell adds no loss and gets no gradient.
            With None they are compared everywhere.

    Returns:
        a scalar, in [0, 2 / (H W)]: the mean over all B H W cells, covered or not.

    Raises:
        ValueError: the mask is not of the teacher's shape.
    """
    if mask is not None and mask.shape != teacher.shape:
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} does not fit the teacher's maps of shape {tuple(teacher.shape)}; "
            "give it one number for each of theirs."
        )
    size = size or common_size(_size(student), _size(teacher))
    student, teacher = _pool(at_least_float32(student), size), _pool(at_least_float32(teacher), size)
    if mask is not None:
        covered = _pool(mask.to(teacher.dtype), size) >= WHOLE
        student, teacher = student * covered, teacher * covered
    distance: Tensor = _Distance.apply(student.flatten(1), teacher.flatten(1))
    return distance


WHOLE = 1 - 1e-6
"""Least average coverage of a covered cell: the average of ones may round to slightly less than 1."""


LEAST_NORM = 1e-12
"""As in F.normalize: a map whose norm is smaller is divided by this instead."""


class _Distance(torch.autograd.Function):
    """The mean of (a - b)^2, where a and b are rows [B, N] divided by their norms, backward by hand.

    With p = 2 (a - b) / (B N), d distance / d row = (p - a <a, p>) / |row|, and p / LEAST_NORM for a row below it.
    The maps are so small that launching kernels dominates the cost; autograd's own backward launches twice as many.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        (a, a_norm), (b, b_norm) = _unit(student), _unit(teacher)
        ctx.save_for_backward(a, a_norm, b, b_norm)
        return (a - b).square().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, a_norm, b, b_norm = ctx.saved_tensors
        p = (a - b) * (gradient * (2 / a.numel()))
        needs_student, needs_teacher = ctx.needs_input_grad
        return (
            _through_unit(p, a, a_norm) if needs_student else None,
            _through_unit(-p, b, b_norm) if needs_teacher else None,
        )


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(LEAST_NORM)
    return rows / norm, norm


def _through_unit(gradient: Tensor, unit: Tensor, norm: Tensor) -> Tensor:
    along = (unit * gradient).sum(dim=1, keepdim=True).masked_fill_(norm <= LEAST_NORM, 0)
    return torch.addcmul(gradient, unit, along, value=-1).div_(norm)


def _pool(maps: Tensor, size: Size) -> Tensor:
    return maps if _size(maps) == size else F.adaptive_avg_pool2d(maps.unsqueeze(1), size).squeeze(1)


def _size(maps: Tensor) -> Size:
    return maps.shape[-2], maps.shape[-1]


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
    pairs = pair_stages([_size(x) for x in student_maps], [_size(x) for x in teacher_maps])
    distances = [
        map_distance(student_maps[pair.student], teacher_maps[pair.teacher], pair.size)
        for pair in pairs
        if pair.has_signal
    ]
    if not distances:
        raise ValueError("no pair of stages is larger than 1x1, so there is no attention to compare.")
    return torch.stack(distances).sum()


class AttentionTransfer(LossTerm):
    """AT as a term of the loss: the sum over paired stages of `map_distance`.

    Args:
        weight: beta.
        map_function: the kind of attention map.

    Raises:
        ConfigError: in `is_silent`, with a weight above 0: no pair of stages is larger than 1x1.
    """

    name = "attention"

    def __init__(self, weight: float, map_function: MapFunction = SUM_OF_SQUARES) -> None:
        super().__init__(weight, Needs(maps=(map_function,)))
        self.map_function = map_function

    def is_silent(self, inputs: LossInputs) -> bool:
        """Whether AT is 0: student or teacher has no maps, or at weight 0 no pair of stages is larger than 1x1.

        Raises:
            ConfigError: the weight is above 0, both have maps, and no pair of stages is larger than 1x1.
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
        return not pairs

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        """{"attention": AT, "attention_stage_0": the first pair's part, ...}, unweighted scalars [].

        They are computed from the maps [B, H, W] of student and teacher, and the coverage of the teacher's; an image
        without a map of the student's is left out as well.
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
            map_distance(student[pair.student], maps[pair.teacher], pair.size, mask=coverage[pair.teacher])
            for pair in inputs.pairs_of(self.map_function)
        ]
        return {self.name: torch.stack(stages).sum(), **{f"{self.name}_stage_{i}": x for i, x in enumerate(stages)}}
