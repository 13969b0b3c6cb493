"""Attention maps [B, H, W]: pure functions of a stage's features [B, C, H, W], or of another signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

FEATURES: Final = "features"
INPUT_GRADIENT: Final = "input_gradient"
ATTENTION: Final = "attention_probabilities"
MAP_SOURCES: Final = (FEATURES, INPUT_GRADIENT, ATTENTION)


@dataclass(frozen=True)
class MapFunction:
    """A kind of attention map: a named function from features, or from another signal, to maps.

    Attributes:
        name: part of the cache key of a teacher's maps; another function needs another name.
        function: from what `of` names to a map [B, H, W], not negative, float32 or wider, up to a factor an image: maps
            are normalised before they are compared. An image whose map is all zero has none, and is not compared,
            where the map is of the input's gradient.
        of: what the function is given. FEATURES ("features"): a stage's features [B, C, H, W]; the map has their size.
            INPUT_GRADIENT ("input_gradient"): the gradient of each image's cross-entropy by its pixels [B, C, H, W];
            one map an image, of any size. ATTENTION ("attention_probabilities"): the `BlockAttention` of each of four
            blocks of a transformer; maps have the size of its grid of patches.

    Raises:
        ValueError: `of` names something else.

    Example:
        >>> strongest = MapFunction("max of squares over channels", lambda x: x.float().square().amax(dim=1))
        >>> strongest(torch.ones(2, 8, 4, 4)).shape
        torch.Size([2, 4, 4])
    """

    name: str
    function: Callable[[Any], Tensor]
    of: str = FEATURES

    def __post_init__(self) -> None:
        if self.of not in MAP_SOURCES:
            raise ValueError(f"a map function is of {' or '.join(MAP_SOURCES)}; {self.name!r} is of {self.of!r}.")

    def __call__(self, source: Any) -> Tensor:
        """The map [B, H, W] of features [B, C, H, W], or of what else the function takes.

        Raises:
            ValueError: the function gives another shape, which could not be compared cell by cell.
        """
        result = self.function(source)
        if self.of != FEATURES:
            if result.dim() != 3:
                raise ValueError(f"the map function {self.name!r} makes {tuple(result.shape)}; it must make [B, H, W].")
            return result
        features: Tensor = source
        expected = (features.shape[0], *features.shape[2:])
        if result.shape != expected:
            raise ValueError(
                f"the map function {self.name!r} makes {tuple(result.shape)} of features {tuple(features.shape)}; it "
                f"must make [B, H, W] = {expected}."
            )
        return result

    @property
    def signal(self) -> str:
        """The name of these maps among a network's signals."""
        return f"maps: {self.name}"


def energy(features: Tensor) -> Tensor:
    """Where a stage is active: the mean over channels of the squared features.

    Args:
        features: [B, C, H, W], of any floating-point type.

    Returns:
        [B, H, W], not negative; float32, or float64 for float64 features, because squares overflow in float16.
    """
    result: Tensor = _Energy.apply(features)
    return result


SUM_OF_SQUARES = MapFunction("mean of squares over channels", energy)
"""F_sum^2 of Zagoruyko & Komodakis, section 3.1, up to the factor C that normalisation takes out."""


class _Energy(torch.autograd.Function):
    """The mean of squares, [B, C, H, W] to [B, H, W], with its backward pass written by hand.

    Autograd would save the squares and read them once more; d energy / d x = 2 x / C needs x alone, which the network
    saves anyway, and is one pass that preserves x's dtype and memory format.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        return _mean_of_squares(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        features: Tensor = ctx.saved_tensors[0]
        factor = (gradient * (2 / features.shape[1])).unsqueeze(1)
        if factor.dtype == features.dtype or torch.compiler.is_compiling():
            return (features * factor).to(features.dtype)
        result = torch.empty_like(features)
        for x, by, out in zip(in_pieces(features), in_pieces(factor, like=features), in_pieces(result), strict=True):
            # In float32, because a small gradient would underflow in float16; and converted separately, because an
            # operation on two dtypes is not vectorised and takes ten times as long.
            out.copy_(x.to(by.dtype).mul_(by))
        return result


def _mean_of_squares(features: Tensor) -> Tensor:
    """[B, C, H, W] to [B, H, W] without a tensor of all squares: allocating it takes longer than the arithmetic.

    Compilers fuse the square with the sum, and so does `vector_norm`; on a CPU it is fast only without a
    dtype conversion and with channels contiguous in memory. Other tensors are squared a few images at a time.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    if torch.compiler.is_compiling():
        return features.to(wide).square().mean(dim=1)
    if features.device.type != "cpu" or (features.dtype == wide and features.stride(1) == 1):
        norms: Tensor = torch.linalg.vector_norm(features, dim=1, dtype=wide)
        return norms.square_().div_(features.shape[1])
    return torch.cat([_squares(x, wide).mean(dim=1) for x in in_pieces(features)])


def _squares(x: Tensor, dtype: torch.dtype) -> Tensor:
    converted = x.to(dtype)
    return converted.square() if converted is x else converted.square_()


def in_pieces(x: Tensor, like: Tensor | None = None) -> Sequence[Tensor]:
    """`x` [B, ...] a few images at a time: on a CPU so many that each core's share of `like` fits its cache.

    The cache holds them in float32. Other devices, and compilers, take all images at once.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return [x]
    numbers = (x if like is None else like).shape[1:].numel()
    pieces: Sequence[Tensor] = torch.split(x, max(1, 2**18 * torch.get_num_threads() // max(1, numbers)))
    return pieces


def normalize(maps: Tensor) -> Tensor:
    """Each map of [B, H, W] divided by its own L2 norm, as [B, H, W]; an all-zero map stays zero."""
    return F.normalize(maps.flatten(1)).view_as(maps)


def attention_map(features: Tensor) -> Tensor:
    """at(x): the attention map of a stage, equation 1 of Zagoruyko & Komodakis with p = 2.

    Args:
        features: [B, C, H, W].

    Returns:
        [B, H, W], in [0, 1], each image's map of L2 norm 1 (0 where all its features are 0).

    Raises:
        ValueError: the features do not have four dimensions.

    Example:
        >>> attention_map(torch.ones(1, 8, 2, 2))
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """
    if features.dim() != 4:
        raise ValueError(f"features of shape {tuple(features.shape)} have no attention map; [B, C, H, W] has.")
    return normalize(energy(features))


def at_least_float32(x: Tensor) -> Tensor:
    """A tensor [...] of any shape, converted to float32 unless it is wider; [...]."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
