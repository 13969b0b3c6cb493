"""Which terms of the loss depend on labels, and what that means for images without one label of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from attention_transfer.errors import ConfigError
from attention_transfer.features.gradients import IGNORED_LABEL
from attention_transfer.features.signals import LOGITS, Needs, Output, Signal, StudentOutput, TeacherOutput
from attention_transfer.losses.term import LossInputs, LossTerm

UNLABELLED = IGNORED_LABEL
"""The label of an image without one."""


def needs_labels(term: LossTerm) -> bool:
    """Whether a term needs the label of each image, or a signal that depends on it."""
    return term.needs.labels or term.needs.gradient


def refuse_mixed_labels(terms: Iterable[LossTerm]) -> None:
    """Refuse terms that need one label of each image, for images that are mixed of two.

    Raises:
        ConfigError: a term with weight > 0 needs labels; names it.
    """
    for term in terms:
        if term.weight > 0 and needs_labels(term):
            raise ConfigError(
                f"the loss term {term.name!r} ({type(term).__name__}) needs one label of each image, but mixup or "
                "cutmix mixes images of two classes; set mixup=0 and cutmix=0, or leave the term out."
            )


@dataclass(frozen=True)
class Labelled:
    """How many images of a batch have a label; those without have UNLABELLED instead.

    Attributes:
        count: images with a label; None where it is unknown, as on a GPU, where counting would stall each step.
        size: images.
        share: of several processes, the labelled fraction of this one's images over that of the global batch's: means
            over labelled images are multiplied by it, as processes are averaged by their numbers of images.
    """

    count: int | None
    size: int
    share: float = 1.0

    @classmethod
    def of(cls, labels: Tensor) -> Labelled:
        """Of the labels [B] of a batch, the only one."""
        count = int((labels >= 0).sum()) if labels.device.type == "cpu" else None
        return cls(count, len(labels))

    @property
    def is_all(self) -> bool:
        """Whether it is known that every image has a label."""
        return self.count == self.size


def only_labelled(inputs: LossInputs, labels: Tensor, needs: Needs) -> tuple[LossInputs, bool]:
    """The inputs of a loss term for the labelled images of a batch alone.

    Args:
        inputs: for the whole batch.
        labels: [B], UNLABELLED where there is none.
        needs: of the term.

    Returns:
        the inputs for the labelled images, and whether there are any; if not, they are for one image of class 0, and
        count for nothing.
    """
    rows = (labels >= 0).nonzero().flatten()
    some = len(rows) > 0
    rows = rows if some else rows.new_zeros(1)
    names = {LOGITS, *needs.of_the_teacher}

    def chosen(output: Output) -> dict[str, Signal]:
        return {name: signal.rows(rows) for name, signal in output.items() if name in names}

    return replace(
        inputs,
        student=StudentOutput(chosen(inputs.student)),
        teacher=TeacherOutput(chosen(inputs.teacher)),
        labels=None if inputs.labels is None else inputs.labels[rows].clamp_min(0),
    ), some
