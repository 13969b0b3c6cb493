"""DKD: decoupled knowledge distillation, Zhao et al., CVPR 2022."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.features.maps import at_least_float32
from attention_transfer.logs import log_once
from attention_transfer.losses.logits.term import Balance, LogitDistillation
from attention_transfer.losses.schedules import CONSTANT, WeightSchedule, risen
from attention_transfer.losses.term import LossInputs


def decoupled_distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    target: float = 1.0,
    nontarget: float = 8.0,
) -> Tensor:
    """DKD: T^2 (target TCKD + nontarget NCKD) of the softened class probabilities, mean over the labelled images.

    Zhao et al. 2022, equation 7. TCKD is KL(teacher || student) of two probabilities, "the label's class" and "any
    other"; NCKD is KL(teacher || student) of the other classes among themselves. KD weighs NCKD by the teacher's
    probability of any other class, so that it fades where the teacher is sure. With two classes NCKD is 0.

    Args:
        student_logits: [B, K].
        teacher_logits: [B, K].
        labels: [B], the classes; images with a negative label are passed over.
        temperature: above 0; higher is softer.
        target: the weight of TCKD.
        nontarget: the weight of NCKD.

    Returns:
        a scalar, not negative; float32 or wider; 0 where no image has a label.
    """
    is_labelled = labels >= 0
    is_target = labels.unsqueeze(1) == torch.arange(student_logits.shape[1], device=labels.device)
    student_parts, student_others = _decoupled(student_logits, is_target, temperature)
    teacher_parts, teacher_others = _decoupled(teacher_logits, is_target, temperature)
    tckd = (teacher_parts.exp() * (teacher_parts - student_parts)).sum(dim=1)
    nckd = (teacher_others.exp() * (teacher_others - student_others).masked_fill(is_target, 0.0)).sum(dim=1)
    each = (target * tckd + nontarget * nckd) * is_labelled
    return each.sum() / is_labelled.sum().clamp_min(1) * temperature**2


def _decoupled(logits: Tensor, is_target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the target and of all others [B, 2]; and of the others among themselves [B, K].

    In the second the target's is -inf. In logarithms, so that no small probability is rounded to 0.
    """
    every = F.log_softmax(at_least_float32(logits) / temperature, dim=1)
    others = every.masked_fill(is_target, -torch.inf)
    all_others = others.logsumexp(dim=1, keepdim=True)
    of_target = every.masked_fill(~is_target, 0.0).sum(dim=1, keepdim=True)
    return torch.cat([of_target, all_others], dim=1), others - all_others


class DecoupledDistillation(LogitDistillation):
    """DKD as a term of the loss: `decoupled_distillation_loss` of the logits, which needs the hard labels.

    Args:
        weight: alpha.
        temperature: above 0.
        target: the weight of TCKD.
        nontarget: the weight of NCKD.
        warmup: epochs over which the weight rises from 0; 0: none. Like the authors' code, min(epoch / warmup, 1), but
            the epoch has a fraction, and counts from 0.
        is_standardized, balance, schedule: see `LogitDistillation`.
    """

    def __init__(
        self,
        weight: float,
        temperature: float = 4.0,
        target: float = 1.0,
        nontarget: float = 8.0,
        warmup: float = 20,
        *,
        is_standardized: bool = False,
        balance: Balance = "sum",
        schedule: WeightSchedule = CONSTANT,
    ) -> None:
        super().__init__(weight, temperature, is_standardized=is_standardized, balance=balance, schedule=schedule)
        self.needs = replace(self.needs, labels=True, epoch=self.needs.epoch or warmup > 0)
        self.target = target
        self.nontarget = nontarget
        self.warmup = warmup

    def weight_at(self, epoch: float) -> float:
        return super().weight_at(epoch) * risen(epoch, self.warmup)

    def compare(self, student: Tensor, teacher: Tensor, inputs: LossInputs) -> Tensor:
        assert inputs.labels is not None
        if student.shape[1] == 2:
            log_once("with two classes there is a single other class: the second part of DKD (NCKD) is 0")
        return decoupled_distillation_loss(
            student, teacher, inputs.labels, self.temperature, self.target, self.nontarget
        )
