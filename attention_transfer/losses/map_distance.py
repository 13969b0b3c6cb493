"""How far two batches of attention maps are apart, in each of the ways that a batch is reduced to a number."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from attention_transfer.features.maps import at_least_float32
from attention_transfer.features.pairing import common_size
from attention_transfer.networks.architecture import Size

Reduction = Literal["mean", "sum", "paper"]


def map_distance(
    student: Tensor,
    teacher: Tensor,
    size: Size | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Difference of two batches of maps, pooled to one size and normalised; by default their mean squared difference.

    Both sides are average-pooled to `size`, then normalised. As normalising only scales the map of each
    image, the result does not depend on whether the maps were normalised before.

    Args:
        student: [B, Hs, Ws], not negative.
        teacher: [B, Ht, Wt], not negative.
        size: (H, W) at which to compare; None takes the smaller of each side.
        mask: [B, Ht, Wt], 1 where the teacher's map is valid and 0 elsewhere. Both sides are compared only in the cells
            of `size` that lie wholly where it is 1; an image without such a cell adds no loss and gets no gradient.
            With None they are compared everywhere.
        reduction: of the differences d of the cells of a batch of B images, covered or not, to a number:
            'mean': of d^2 over all B H W cells, in [0, 2 / (H W)];
            'sum': H W times as much: of an image's squared L2 norm of d over the batch, in [0, 2];
            'paper': half the mean over the batch of an image's L2 norm of d, not squared, in [0, 0.71], as in equation
            2 of Zagoruyko & Komodakis (ICLR 2017); its gradient is 0 where the maps are equal.

    Returns:
        a scalar, not negative.

    Raises:
        ValueError: the mask is not of the teacher's shape.
    """
    if mask is not None and mask.shape != teacher.shape:
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} does not fit the teacher's maps of shape {tuple(teacher.shape)}; "
            "give it one number for each of theirs."
        )
    size = size or common_size(size_of(student), size_of(teacher))
    student, teacher = pool(at_least_float32(student), size), pool(at_least_float32(teacher), size)
    if mask is not None:
        covered = whole_cells(mask, size)
        student, teacher = student * covered, teacher * covered
    rows = student.flatten(1), teacher.flatten(1)
    if reduction == "paper":
        half_norm: Tensor = _HalfNorm.apply(*rows)
        return half_norm
    distance: Tensor = _Distance.apply(*rows)
    return distance if reduction == "mean" else distance * rows[0].shape[1]


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
        a, _, b, _ = ctx.saved_tensors
        return _through_both((a - b) * (gradient * (2 / a.numel())), ctx)


class _HalfNorm(torch.autograd.Function):
    """Half the mean over rows of |a - b|, where a and b are rows [B, N] divided by their norms, backward by hand.

    With p = (a - b) / (2 B |a - b|), and 0 where a and b are equal, it is as for `_Distance`.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        (a, a_norm), (b, b_norm) = _unit(student), _unit(teacher)
        ctx.save_for_backward(a, a_norm, b, b_norm)
        norms: Tensor = torch.linalg.vector_norm(a - b, dim=1)
        return norms.mean() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, _, b, _ = ctx.saved_tensors
        direction, _ = _unit(a - b)
        return _through_both(direction * (gradient * (0.5 / len(a))), ctx)


def _through_both(p: Tensor, ctx: Any) -> tuple[Tensor | None, Tensor | None]:
    """From the gradient by the unit rows a, which is the negative one by b, to those by the rows themselves."""
    a, a_norm, b, b_norm = ctx.saved_tensors
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


def pool(maps: Tensor, size: Size) -> Tensor:
    """Maps [B, H, W] or features [B, C, H, W], averaged to a size (h, w): [B, h, w] or [B, C, h, w]."""
    if size_of(maps) == size:
        return maps
    if maps.dim() == 4:
        return F.adaptive_avg_pool2d(maps, size)
    return F.adaptive_avg_pool2d(maps.unsqueeze(1), size).squeeze(1)


def whole_cells(mask: Tensor, size: Size) -> Tensor:
    """The cells of `size` (h, w) that lie wholly where a mask [B, H, W] is 1: bool [B, h, w]."""
    return pool(mask.float(), size) >= WHOLE


def size_of(maps: Tensor) -> Size:
    """(H, W) of maps [..., H, W]."""
    return maps.shape[-2], maps.shape[-1]
