"""KD: distillation of logits, Hinton et al. 2015, section 2."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from attention_transfer.features.maps import at_least_float32
from attention_transfer.losses.logits.term import LogitDistillation
from attention_transfer.losses.term import LossInputs


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
    student_log = F.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
    teacher_log = F.log_softmax(at_least_float32(teacher_logits) / temperature, dim=1)
    return F.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean") * temperature**2


class KnowledgeDistillation(LogitDistillation):
    """KD as a term of the loss: `distillation_loss` of the logits; see `LogitDistillation` for the arguments."""

    def compare(self, student: Tensor, teacher: Tensor, inputs: LossInputs) -> Tensor:
        return distillation_loss(student, teacher, self.temperature)
