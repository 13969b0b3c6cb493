"""What the distillation losses of logits share: the term of the loss, its balance with cross-entropy, its checks."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from torch import Tensor

from attention_transfer.catalogue import library_of
from attention_transfer.errors import ConfigError, TeacherError
from attention_transfer.features.maps import at_least_float32
from attention_transfer.features.signals import Needs
from attention_transfer.losses.logits.standardization import standardized
from attention_transfer.losses.schedules import CONSTANT, WeightSchedule
from attention_transfer.losses.term import LossInputs, LossTerm
from attention_transfer.networks.registry import HeadlessCard, ModelCard

Balance = Literal["sum", "paper"]


class LogitDistillation(LossTerm):
    """Base class of the losses of logits, which are all reported as "kd".

    Args:
        weight: alpha.
        temperature: above 0.
        is_standardized: the logits of both sides are standardised first; see `standardized`.
        balance: 'sum': cross-entropy keeps its weight of 1; 'paper': it has 1 - alpha, with the alpha of the moment
            (Hinton et al. 2015, section 2: a weighted average of the two objectives).
        schedule: of alpha.

    Raises:
        ConfigError: balance is 'paper' and alpha above 1. In `is_silent`: two classes are standardised.
        TeacherError: in `is_silent`, with a weight above 0: the heads have different sizes.
    """

    name = "kd"

    def __init__(
        self,
        weight: float,
        temperature: float = 4.0,
        *,
        is_standardized: bool = False,
        balance: Balance = "sum",
        schedule: WeightSchedule = CONSTANT,
    ) -> None:
        super().__init__(weight, Needs(logits=True, epoch=schedule.varies))
        if balance == "paper" and weight > 1:
            raise ConfigError(f"kd_balance is 'paper', which needs an alpha of at most 1, but alpha is {weight:g}.")
        self.temperature = temperature
        self.is_standardized = is_standardized
        self.balance = balance
        self.schedule = schedule

    def weight_at(self, epoch: float) -> float:
        return self.weight * self.schedule(epoch)

    def cross_entropy_weight_at(self, epoch: float) -> float:
        return 1 - self.weight_at(epoch) if self.balance == "paper" else 1.0

    def is_silent(self, inputs: LossInputs) -> bool:
        """Whether the loss is 0: the teacher gives no logits, or at weight 0 the heads have different sizes.

        Raises:
            TeacherError: the weight is above 0, and the heads have different sizes.
            ConfigError: the logits of two classes are to be standardised.
        """
        if super().is_silent(inputs):
            return True
        teacher = inputs.teacher.tensor("logits")
        if self.weight > 0:
            check_equal_heads(inputs.logits.shape[1], teacher.shape[1])
        if self.is_standardized and inputs.logits.shape[1] == 2:
            raise ConfigError(
                "logit_standardization is on, but there are two classes, whose standardised logits are always the "
                "same two numbers: nothing would be learnt from them; leave it off."
            )
        return inputs.logits.shape != teacher.shape

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        """{"kd": the loss}, unweighted: a scalar [], from logits [B, K] of student and teacher."""
        student, teacher = at_least_float32(inputs.logits), at_least_float32(inputs.teacher.tensor("logits"))
        if self.is_standardized:
            student, teacher = standardized(student), standardized(teacher)
        return {self.name: self.compare(student, teacher, inputs)}

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor, inputs: LossInputs) -> Tensor:
        """The loss, a scalar [], of logits [B, K] in float32 or wider."""


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
    if not isinstance(card, HeadlessCard):
        return
    remedy = "or hand the whole network to train_at(teacher=...)"
    if any(library_of(card.name)):
        remedy = (
            f"or train a linear head for it on your classes (attention-transfer train --model {card.name} --weights "
            "DEFAULT-OR-FILE --freeze backbone ...) and give the checkpoint as the teacher"
        )
    raise TeacherError(
        f"alpha > 0 distils logits, but the teacher, a {card.name}, came without a head that can be built from its "
        f"file (none, or one of several layers); set alpha=0 (attention transfer alone), {remedy}."
    )
