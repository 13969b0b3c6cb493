"""F_sum^p and F_max^p of Zagoruyko & Komodakis (ICLR 2017), section 3.1: how strongly a stage's channels respond.

A map is compared after it is normalised, so its scale is free: each image is first divided by its features' largest
magnitude, which keeps high powers from overflowing. That divisor is a constant for the gradient, which normalising
makes exact all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention_transfer.features.maps import SUM_OF_SQUARES, MapFunction, in_pieces

Reduction = Literal["sum", "max"]


def power_map(reduction: Reduction, power: float) -> MapFunction:
    """The map function of the settings `attention` and `attention_power`.

    Equal arguments give equal functions. 'sum' with a power of 2 is `SUM_OF_SQUARES`, whose name caches of earlier
    versions have.

    Args:
        reduction: 'sum': the mean over channels of |A|^p; 'max': the largest over channels.
        power: p, at least 1.

    Raises:
        ValueError: p is less than 1, where the map has no finite gradient at 0; or another reduction.

    Example:
        >>> power_map("max", 4.0)(torch.rand(2, 8, 5, 5)).shape
        torch.Size([2, 5, 5])
    """
    if reduction not in ("sum", "max") or not power >= 1:
        raise ValueError(f"there is no map {reduction!r} with power {power!r}; use 'sum' or 'max', and 1 or more.")
    if reduction == "sum" and power == 2:
        return SUM_OF_SQUARES
    words = "mean" if reduction == "sum" else "max"
    return MapFunction(f"{words} of |A|^{float(power)!r} over channels", _PowerMap(reduction, float(power)))


@dataclass(frozen=True)
class _PowerMap:
    """The function of such a map; two of the same kind and power are equal."""

    reduction: Reduction
    power: float

    def __call__(self, features: Tensor) -> Tensor:
        """Features [B, C, H, W] to their map [B, H, W] in [0, 1], of float32 or wider."""
        kind = _MeanOfPowers if self.reduction == "sum" else _MaxOfPowers
        result: Tensor = kind.apply(features, self.power)
        return result


class _MeanOfPowers(torch.autograd.Function):
    """The mean over channels of (|A| / peak)^p, where peak is the image's largest |A|; backward by hand.

    d map / d A = p / (C peak) (|A| / peak)^(p - 1) sign(A): it needs A alone, which the network keeps anyway.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, power: float) -> Tensor:
        ctx.power = power
        maps, peaks = [], []
        for x in in_pieces(features):
            magnitude = _wide(x).abs()
            peak = _peak(magnitude, dim=(1, 2, 3))
            peaks.append(peak)
            maps.append(raised(magnitude.div_(peak), power).mean(dim=1))
        ctx.save_for_backward(features, torch.cat(peaks))
        return torch.cat(maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        features, peaks = ctx.saved_tensors
        factor = gradient.unsqueeze(1) * (ctx.power / features.shape[1]) / peaks
        result = torch.empty_like(features)
        pieces = (in_pieces(each, like=features) for each in (features, peaks, factor, result))
        for x, peak, by, out in zip(*pieces, strict=True):
            _write_product(_derivative(_wide(x) / peak, ctx.power), by, out)
        return result, None


def _derivative(x: Tensor, power: float) -> Tensor:
    """|x|^(p - 1) sign(x), for p of 1 or more; 0 at 0."""
    if power >= 2:
        return raised(x.abs(), power - 2).mul_(x)
    return raised(x.abs(), power - 1).mul_(x.sign())


class _MaxOfPowers(torch.autograd.Function):
    """The largest over channels of (|A| / peak)^p, where peak is the image's largest |A|; backward by hand.

    Only the channels that attain the maximum get a gradient, and share it evenly where they are several, as in
    `torch.amax`: in bfloat16 they often are.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, power: float) -> Tensor:
        ctx.power = power
        largest = torch.cat([_wide(x.abs().amax(dim=1)) for x in in_pieces(features)])
        ctx.save_for_backward(features, largest)
        return raised(largest / _peak(largest, dim=(1, 2)), power)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        features, largest = ctx.saved_tensors
        peak = _peak(largest, dim=(1, 2))
        factor = (gradient * raised(largest / peak, ctx.power - 1) * (ctx.power / peak)).unsqueeze(1)
        divisor = largest.unsqueeze(1).clamp_min(LEAST_PEAK)
        result = torch.empty_like(features)
        pieces = (in_pieces(each, like=features) for each in (features, divisor, factor, result))
        for x, most, by, out in zip(*pieces, strict=True):
            # a quotient is 1 only where both are equal: 1 or -1 where the maximum is attained, 0 elsewhere
            attained = (_wide(x) / most).trunc_()
            attaining = attained.abs().sum(dim=1, keepdim=True).clamp_min_(1)
            _write_product(attained, by / attaining, out)
        return result, None


MOST_PRODUCTS = 16
"""Whole powers up to this are made of products, those half way between with a root."""


LEAST_PEAK = 1e-20
"""An image whose features are all smaller is divided by this instead: a zero image has a zero map."""


def _peak(magnitudes: Tensor, dim: tuple[int, ...]) -> Tensor:
    return magnitudes.amax(dim=dim, keepdim=True).clamp_min_(LEAST_PEAK)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _write_product(one: Tensor, other: Tensor, out: Tensor) -> None:
    if out.dtype == one.dtype:
        torch.mul(one, other, out=out)
    else:
        # converted separately, because an operation on two dtypes is not vectorised and takes ten times as long
        out.copy_(one.mul_(other))


def raised(x: Tensor, power: float) -> Tensor:
    """x^p for x >= 0, possibly in x's place; [...] to [...]. Products and roots are several times as fast as `pow`."""
    if (2 * power) % 1 or power > MOST_PRODUCTS:
        return x.pow_(power)
    if power == 0.5:
        return x.sqrt_()
    if power % 1:
        return x.sqrt().mul_(raised(x, power - 0.5))
    result: Tensor | None = None
    base, left = x, int(power)
    while left:
        if left % 2:
            result = base if result is None else result * base
        left //= 2
        if left:
            base = base.square_() if result is None else base.square()
    return torch.ones_like(x) if result is None else result
