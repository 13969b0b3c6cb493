"""The mathematics of attention transfer: pure functions of tensors, nothing else.

Attention transfer is Zagoruyko & Komodakis, "Paying More Attention to Attention" (ICLR 2017), equation 2 with
the map F_sum^2 of section 3.1, in the mean-squared form of the authors' published code; distillation is Hinton
et al., "Distilling the Knowledge in a Neural Network" (2015), section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Size = tuple[int, int]


def energy(features: Tensor) -> Tensor:
    """Where a stage is active: the mean over channels of the squared features.

    Args:
        features: [B, C, H, W], of any floating-point type.

    Returns:
        [B, H, W], not negative; float32, or float64 for float64 features, because squares overflow in float16.
    """
    result: Tensor = _Energy.apply(features)
    return result


class _Energy(torch.autograd.Function):
    """The mean of squares with its backward pass written by hand.

    Autograd would keep the squares and walk over them once more; d energy / d x = 2 x / C needs x alone, which the
    network keeps anyway, and is one pass that leaves x's dtype and memory format.
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
        for x, by, out in zip(_pieces(features), _pieces(factor, like=features), _pieces(result), strict=True):
            # In float32, for in float16 a small gradient would become 0 before its time; and converted by itself,
            # because an operation on two number formats is not vectorised and takes ten times as long.
            out.copy_(x.to(by.dtype).mul_(by))
        return result


def _mean_of_squares(features: Tensor) -> Tensor:
    """[B, H, W] without a tensor of all squares: getting its memory takes longer than the arithmetic.

    Compilers fuse the square with the sum, and so does `vector_norm`; on a CPU it is fast only where it need not
    convert and the channels are neighbours in memory. The rest is squared a few images at a time.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    if torch.compiler.is_compiling():
        return features.to(wide).square().mean(dim=1)
    if features.device.type != "cpu" or (features.dtype == wide and features.stride(1) == 1):
        norms: Tensor = torch.linalg.vector_norm(features, dim=1, dtype=wide)
        return norms.square_().div_(features.shape[1])
    return torch.cat([_squares(x, wide).mean(dim=1) for x in _pieces(features)])


def _squares(x: Tensor, dtype: torch.dtype) -> Tensor:
    converted = x.to(dtype)
    return converted.square() if converted is x else converted.square_()


def _pieces(x: Tensor, like: Tensor | None = None) -> Sequence[Tensor]:
    """`x` a few images at a time: on a CPU so many that each core's share of `like` fits its cache in float32."""
    if x.device.type != "cpu":
        return [x]
    numbers = (x if like is None else like).shape[1:].numel()
    pieces: Sequence[Tensor] = torch.split(x, max(1, 2**18 * torch.get_num_threads() // max(1, numbers)))
    return pieces


def normalize(maps: Tensor) -> Tensor:
    """Each map of [B, H, W] divided by its own L2 norm; an all-zero map stays zero."""
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


def map_distance(student: Tensor, teacher: Tensor, size: Size | None = None, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of two sets of maps, brought to one size and normalised.

    Both sides are average-pooled to `size`, then normalised. As the normalised map of an image differs from its
    energy by one factor, it makes no difference whether the maps come in normalised or not.

    Args:
        student: [B, Hs, Ws], not negative.
        teacher: [B, Ht, Wt], not negative.
        size: (H, W) at which to compare; None takes the smaller of each side.
        mask: [B, Ht, Wt], 1 where the teacher's map holds and 0 elsewhere. Both sides are compared only in the cells
            of `size` that lie wholly where it is 1; an image without any adds no loss and gets no gradient. None
            compares everywhere.

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
    student, teacher = _pool(_at_least_float32(student), size), _pool(_at_least_float32(teacher), size)
    if mask is not None:
        covered = _pool(mask.to(teacher.dtype), size) >= WHOLE
        student, teacher = student * covered, teacher * covered
    distance: Tensor = _Distance.apply(student.flatten(1), teacher.flatten(1))
    return distance


WHOLE = 1 - 1e-6
"""A cell is covered from here on: the average of ones may round to slightly less than 1."""

LEAST_NORM = 1e-12
"""As in F.normalize: a map below this norm is divided by it instead."""


class _Distance(torch.autograd.Function):
    """The mean of (a - b)^2, where a and b are rows [B, N] divided by their norms, backward by hand.

    With p = 2 (a - b) / (B N), d distance / d row = (p - a <a, p>) / |row|, and p / LEAST_NORM for a row below it.
    The maps are so small that launching operations is what costs; autograd's own formula launches twice as many.
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


def common_size(one: Size, other: Size) -> Size:
    """The size at which two maps are compared: the smaller of each side."""
    return min(one[0], other[0]), min(one[1], other[1])


class StagePair(NamedTuple):
    """Which stage of the student is compared with which of the teacher, and at what size."""

    student: int
    teacher: int
    size: Size

    @property
    def has_signal(self) -> bool:
        """A normalised map of one number is always 1: such a pair teaches nothing."""
        return self.size != (1, 1)


def pair_stages(student: Sequence[Size], teacher: Sequence[Size]) -> list[StagePair]:
    """Pair the stages of two networks by the sizes of their maps, each stage at most once.

    Stages of equal size pair first; what is left pairs from the deepest, in order. Pairs come in the order of
    the student's stages, those without signal (1x1) among them.

    Args:
        student: (H, W) of the student's stages, shallow to deep.
        teacher: (H, W) of the teacher's stages, shallow to deep.

    Example:
        >>> [(pair.student, pair.teacher) for pair in pair_stages([(32, 32), (8, 8)], [(16, 16), (8, 8)])]
        [(0, 0), (1, 1)]
    """
    left = list(range(len(teacher)))
    partner: dict[int, int] = {}
    for stage in reversed(range(len(student))):
        equal = [candidate for candidate in left if teacher[candidate] == student[stage]]
        if equal:
            partner[stage] = equal[-1]
            left.remove(equal[-1])
    unpaired = [stage for stage in range(len(student)) if stage not in partner]
    partner.update(zip(reversed(unpaired), reversed(left), strict=False))
    return [StagePair(s, t, common_size(student[s], teacher[t])) for s, t in sorted(partner.items())]


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """AT: the sum over paired stages of the mean squared difference of their attention maps.

    Args:
        student: features [B, C, H, W] of each stage, shallow to deep.
        teacher: features of the teacher's stages; channels and sizes may differ from the student's.

    Returns:
        a scalar, not negative; 0 where both look at the same places.

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


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """KD: T^2 KL(teacher || student) of the softened class probabilities, mean over the batch.

    Hinton et al. 2015, section 2; the factor T^2 keeps the gradient's size independent of the temperature.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        temperature: above 0; higher is softer.

    Returns:
        a scalar, not negative; float32 or wider.
    """
    student_log = F.log_softmax(_at_least_float32(student_logits) / temperature, dim=1)
    teacher_log = F.log_softmax(_at_least_float32(teacher_logits) / temperature, dim=1)
    return F.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean") * temperature**2


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
