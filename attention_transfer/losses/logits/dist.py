"""DIST: distillation of relations, Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.features.maps import at_least_float32
from attention_transfer.logs import log_once
from attention_transfer.losses.logits.term import LogitDistillation
from attention_transfer.losses.term import LossInputs


def relation_distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """DIST: T^2 [(1 - mean over images of r) + (1 - mean over classes of r)] of the softened class probabilities.

    Huang et al. 2022, equations 8 to 10, with both weights 1; r is Pearson's correlation of student and teacher: for an
    image over its classes, for a class over the images of the batch (which need two of them). A row that is constant
    up to rounding, on either side, counts as r = 0 and gets no gradient; the authors add 1e-8 to the denominator
    instead, which also discounts classes of small probability.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        temperature: above 0; higher is softer.

    Returns:
        a scalar in [0, 4 T^2] (a single image: [0, 2 T^2], without the second part); float32 or wider.
    """
    student = F.softmax(at_least_float32(student_logits) / temperature, dim=1)
    teacher = F.softmax(at_least_float32(teacher_logits) / temperature, dim=1)
    loss = 1 - pearson(student, teacher).mean()
    if len(student) > 1:
        loss = loss + 1 - pearson(student.T, teacher.T).mean()
    return loss * temperature**2


def pearson(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's correlation of each row of [N, M] with the same row of another [N, M]; [N] in [-1, 1].

    0, without a gradient, where a row is constant up to rounding. Rows of two numbers have no gradient either: their
    correlation is 1 or -1, and its gradient nothing but rounding.
    """
    if one.shape[1] == 2:
        one, other = one.detach(), other.detach()
    (a, a_norm), (b, b_norm) = _centred(one), _centred(other)
    norms = a_norm * b_norm
    is_constant = norms == 0
    return torch.where(is_constant, 0.0, (a * b).sum(dim=1) / norms.masked_fill(is_constant, 1.0))


def _centred(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows without their means, and their norms [N]: 0 for rows that are constant up to rounding."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    norms = torch.linalg.vector_norm(centred, dim=1)
    rounding = 8 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows.detach(), dim=1)
    return centred, norms.masked_fill(norms <= rounding, 0.0)


class RelationDistillation(LogitDistillation):
    """DIST as a term of the loss: `relation_distillation_loss`; see `LogitDistillation` for the arguments.

    The second part depends on the batch: with several processes, on each one's share of it.
    """

    def compare(self, student: Tensor, teacher: Tensor, inputs: LossInputs) -> Tensor:
        if len(student) < 2:
            log_once("a batch has a single image: for it, DIST compares the classes within the image alone")
        if student.shape[1] == 2:
            log_once("with two classes DIST learns from the relations between images alone, not from those of classes")
        return relation_distillation_loss(student, teacher, self.temperature)
