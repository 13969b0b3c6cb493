"""The teacher's classes matched by name with the student's: its logits in the student's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attention_transfer.class_names import Classes, Match, match
from attention_transfer.errors import DataError, TeacherError
from attention_transfer.features.signals import LOGITS, Signal, TeacherOutput
from attention_transfer.logs import log_once
from attention_transfer.losses.logits.term import check_has_head
from attention_transfer.networks.class_lists import network_classes
from attention_transfer.networks.registry import HeadlessCard, card_of

MatchLogits = Callable[[TeacherOutput], TeacherOutput]
"""From the teacher's output to the same output with logits of the student's classes, or without."""


def without_logits(output: TeacherOutput) -> TeacherOutput:
    """Student and teacher have other classes: the logits are of no use."""
    return TeacherOutput({name: signal for name, signal in output.items() if name != LOGITS})


def labels_in_teacher(teacher: nn.Module, student: Classes) -> tuple[int, ...] | None:
    """Which of the teacher's classes each of the student's labels is; None where they are numbered alike.

    Args:
        teacher: the network, whose loss by these labels is differentiated.
        student: the classes of the student.

    Raises:
        TeacherError: the teacher has no head, or does not know the student's classes.
    """
    why = "the loss needs the gradient of the teacher's cross-entropy by the input"
    if isinstance(card_of(teacher), HeadlessCard):
        raise TeacherError(f"{why}, but the teacher came without a head; choose another kind of attention.")
    try:
        found = match(network_classes(teacher, "the teacher"), student)
    except DataError as error:
        raise TeacherError(
            f"{why}, but {error}; choose another kind of attention, or train a teacher on these classes."
        ) from None
    if found.note is not None:
        log_once(found.note)
    return found.positions


class SelectLogits:
    """Selects the logits of the student's classes, in the student's order.

    Args:
        positions: class i of the student is class positions[i] of the teacher.
        teacher_classes: K, the number of the teacher's classes.
    """

    def __init__(self, positions: Sequence[int], teacher_classes: int) -> None:
        self.teacher_classes = teacher_classes
        self._positions = torch.tensor(positions, dtype=torch.int64)

    def __call__(self, output: TeacherOutput) -> TeacherOutput:
        """The same output with logits [B, len(positions)] instead of [B, K].

        Raises:
            TeacherError: the teacher outputs another number of logits.
        """
        logits = output.logits
        if logits is None:
            return output
        if logits.shape[1] != self.teacher_classes:
            raise TeacherError(
                f"the teacher names {self.teacher_classes} classes, but puts out {logits.shape[1]} logits; "
                "correct its class_names."
            )
        return TeacherOutput({**output, LOGITS: Signal(logits.index_select(1, self._on(logits)))})

    def _on(self, logits: Tensor) -> Tensor:
        if self._positions.device != logits.device:
            self._positions = self._positions.to(logits.device)
        return self._positions


def match_teacher(teacher: nn.Module, student: Classes, *, distils: bool) -> Match | None:
    """Where the student's classes are among the teacher's; None where they are not, and need not be.

    Args:
        teacher: the network, which may name its classes (see `network_classes`).
        student: the classes of the student.
        distils: whether logits are distilled (alpha > 0); if not, the classes may differ.

    Raises:
        TeacherError: logits are distilled, and the teacher has no head, or does not know the student's classes.
    """
    if distils:
        check_has_head(card_of(teacher))
    try:
        return match(network_classes(teacher, "the teacher"), student)
    except DataError as error:
        if distils:
            raise TeacherError(
                f"alpha > 0 distils logits class by class, but {error}; set alpha=0 (attention transfer alone), or "
                "train a teacher on these classes."
            ) from None
        return None


def match_logits(teacher: nn.Module | None, student: Classes, *, distils: bool) -> MatchLogits | None:
    """A function that turns the teacher's logits into logits of the student's classes; decided once for a run.

    None where there is nothing to do: there is no teacher, or it has the same classes in the same order.

    Args:
        teacher: as for `match_teacher`; None where there is none.
        student: the classes of the student.
        distils: as for `match_teacher`.

    Raises:
        TeacherError: as from `match_teacher`.
    """
    if teacher is None:
        return None
    found = match_teacher(teacher, student, distils=distils)
    if found is None:
        return without_logits
    if found.note is not None and distils:
        log_once(found.note)
    if found.positions is None:
        return None
    return SelectLogits(found.positions, network_classes(teacher).number or 0)
