"""Pairing the stages of student and teacher, and the size at which each pair is compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from attention_transfer.networks.architecture import Size


def common_size(one: Size, other: Size) -> Size:
    """The size at which two maps are compared: the smaller of each side."""
    return min(one[0], other[0]), min(one[1], other[1])


class StagePair(NamedTuple):
    """A pair of stages whose attention maps are compared.

    Attributes:
        student: index of the student's stage.
        teacher: index of the teacher's stage.
        size: (H, W) at which their maps are compared.
    """

    student: int
    teacher: int
    size: Size

    @property
    def has_signal(self) -> bool:
        """Whether the pair gives a gradient: a normalised 1x1 map is always 1."""
        return self.size != (1, 1)


def pair_stages(student: Sequence[Size], teacher: Sequence[Size]) -> list[StagePair]:
    """Pair the stages of two networks by the sizes of their maps, each stage at most once.

    Stages of equal size pair first; the rest pair from the deepest, in order. Where one network has a single
    resolution, as a vision transformer has, sizes say nothing about depth: stages pair by relative depth. Pairs come in
    the order of the student's stages, those without signal (1x1) among them.

    Args:
        student: (H, W) of the student's stages, shallow to deep.
        teacher: (H, W) of the teacher's stages, shallow to deep.

    Example:
        >>> [(pair.student, pair.teacher) for pair in pair_stages([(32, 32), (8, 8)], [(16, 16), (8, 8)])]
        [(0, 0), (1, 1)]
        >>> [(pair.student, pair.teacher) for pair in pair_stages([(8, 8), (4, 4)], [(4, 4)] * 4)]
        [(0, 1), (1, 3)]
    """
    if _has_one_resolution(student) or _has_one_resolution(teacher):
        return pair_by_depth(student, teacher)
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


def _has_one_resolution(sizes: Sequence[Size]) -> bool:
    return len(sizes) > 1 and len(set(sizes)) == 1


def pair_in_order(student: Sequence[Size], teacher: Sequence[Size]) -> list[StagePair]:
    """Pair stages one by one, as the setting `layers` names them.

    Args:
        student: (H, W) of the student's modules.
        teacher: (H, W) of as many of the teacher's.
    """
    sizes = zip(student, teacher, strict=True)
    return [StagePair(i, i, common_size(mine, theirs)) for i, (mine, theirs) in enumerate(sizes)]


def pair_by_depth(student: Sequence[Size], teacher: Sequence[Size]) -> list[StagePair]:
    """Pair stages at equal depths of two networks by relative depth: stage i of n lies at (i + 1) / n.

    Each stage of the network with fewer is paired with the nearest of the other, the deeper where two are as near.

    Args:
        student: (H, W) of the student's maps, shallow to deep.
        teacher: (H, W) of the teacher's maps, shallow to deep.

    Example:
        >>> [(pair.student, pair.teacher) for pair in pair_by_depth([(4, 4)] * 2, [(8, 8)] * 4)]
        [(0, 1), (1, 3)]
    """
    if not student or not teacher:
        return []
    if len(student) > len(teacher):
        turned = pair_by_depth(teacher, student)
        return [StagePair(pair.teacher, pair.student, pair.size) for pair in turned]
    nearest = [_nearest((i + 1) / len(student), len(teacher)) for i in range(len(student))]
    return [StagePair(i, j, common_size(student[i], teacher[j])) for i, j in enumerate(nearest)]


def _nearest(depth: float, count: int) -> int:
    return min(reversed(range(count)), key=lambda j: abs((j + 1) / count - depth))
