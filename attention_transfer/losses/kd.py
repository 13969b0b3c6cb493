"""KD: distillation of logits, Hinton et al. 2015, section 2."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from attention_transfer.errors import TeacherError
from attention_transfer.features.maps import at_least_float32
from attention_transfer.features.signals import Needs
from attention_transfer.losses.term import LossInputs, LossTerm
from attention_transfer.networks.registry import HeadlessCard, ModelCard


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


class KnowledgeDistillation(LossTerm):
    """KD as a term of the loss: `distillation_loss` of the logits.

    Args:
        weight: alpha.
        temperature: above 0.

    Raises:
        TeacherError: in `is_silent`, with a weight above 0: the heads have different sizes.
    """

    name = "kd"

    def __init__(self, weight: float, temperature: float = 4.0) -> None:
        super().__init__(weight, Needs(logits=True))
        self.temperature = temperature

    def is_silent(self, inputs: LossInputs) -> bool:
        """Whether KD is 0: the teacher gives no logits, or at weight 0 the heads have different sizes.

        Raises:
            TeacherError: the weight is above 0, and the heads have different sizes.
        """
        if super().is_silent(inputs):
            return True
        teacher = inputs.teacher.tensor("logits")
        if self.weight > 0:
            check_equal_heads(inputs.logits.shape[1], teacher.shape[1])
        return inputs.logits.shape != teacher.shape

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        """{"kd": KD}, unweighted: a scalar [], from logits [B, K] of student and teacher."""
        return {self.name: distillation_loss(inputs.logits, inputs.teacher.tensor("logits"), self.temperature)}


def check_equal_heads(student_classes: int, teacher_classes: int) -> None:
    """Check that both heads have the same number of classes, which distillation requires.

    Raises:
        TeacherError: they have not.
    """
    if student_classes != teacher_classes:
        raise TeacherError(
            f"alpha > 0 distils logits, but the student tells {student_classes} classes apart and the teacher "
            f"{teacher_classes}; set alpha=0 (attention transfer alone), or train a teacher on these classes."
        )


def check_has_head(card: ModelCard | None) -> None:
    """Check that the teacher has its own head, which distillation requires and its file may lack.

    Raises:
        TeacherError: it has none.
    """
    if isinstance(card, HeadlessCard):
        raise TeacherError(
            f"alpha > 0 distils logits, but the teacher, a {card.name}, came without a head that can be built from its "
            "file (none, or one of several layers); set alpha=0 (attention transfer alone), or hand the whole network "
            "to train_at(teacher=...)."
        )
