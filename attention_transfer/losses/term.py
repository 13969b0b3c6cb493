"""A term of the loss: total = cross-entropy + the sum over terms of weight * term.

A user's own term is a subclass, passed as `train_at(terms=[...])`; no other code needs changing. Logs, epoch means,
TensorBoard and the summary report the terms of a run by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.maps import FEATURES, MapFunction
from attention_transfer.features.pairing import StagePair
from attention_transfer.features.signals import Needs, StudentOutput, TeacherOutput

RESERVED = frozenset({"loss", "accuracy", "balanced_accuracy", "classification", "epoch", "lr", "seconds"})
"""Names of other figures in the history, which no scalar of a term may have."""


@dataclass(frozen=True)
class LossInputs:
    """Inputs of a loss term for a batch.

    Attributes:
        student: its logits [B, K], with gradients, and the signals that the term needs.
        teacher: its signals, without gradients.
        pairs: which stages are compared, where stages are tapped on both sides; at sizes above 1x1.
        map_pairs: which maps are compared, by the name of the signal, where they are of something else than features.
        labels: [B], the hard labels; None unless the term's needs name them.
        epoch: from 0, with the fraction done; None unless the term's needs name it.
    """

    student: StudentOutput
    teacher: TeacherOutput
    pairs: tuple[StagePair, ...] = ()
    labels: Tensor | None = None
    epoch: float | None = None
    map_pairs: Mapping[str, tuple[StagePair, ...]] = field(default_factory=dict)

    def pairs_of(self, function: MapFunction) -> tuple[StagePair, ...]:
        """Which maps by a function are compared, at sizes above 1x1."""
        return self.pairs if function.of == FEATURES else self.map_pairs.get(function.signal, ())

    @property
    def logits(self) -> Tensor:
        """The student's logits [B, K]."""
        return self.student.tensor("logits")


class LossTerm(nn.Module):
    """Base class of a term of the loss.

    `forward` returns a dict of scalars. The one under the term's own name is multiplied by the weight and minimised;
    the others are reported beside it. Parameters of a term (a projector, say) are made in `build`, trained with the
    student's, saved in checkpoints and restored; its modules are in train and eval mode as the student is. Each batch
    reports the same scalars.

    Args:
        weight: at least 0; at 0 the term is reported and not minimised.
        needs: the signals that it needs of student and teacher; None: only the student's logits.

    Attributes:
        name: an identifier; the key of its value in the training history, as in train_NAME and val_NAME.

    Raises:
        ConfigError: the weight is negative, or the name is not an identifier.

    Example:
        >>> class Confidence(LossTerm):
        ...     name = "confidence"
        ...
        ...     def forward(self, inputs):
        ...         return {self.name: -inputs.logits.softmax(dim=1).amax(dim=1).mean()}
        >>> Confidence(0.1).weight
        0.1
    """

    name: ClassVar[str]

    def __init__(self, weight: float, needs: Needs | None = None) -> None:
        super().__init__()
        if not weight >= 0:
            raise ConfigError(
                f"the weight of the loss term {type(self).__name__} is {weight!r}; it must be at least 0."
            )
        if not getattr(self, "name", "").isidentifier():
            raise ConfigError(
                f"{type(self).__name__}.name is {getattr(self, 'name', None)!r}; it must be an identifier."
            )
        self.weight = float(weight)
        self.needs = needs if needs is not None else Needs()

    def build(self, inputs: LossInputs) -> None:
        """Create the term's parameters, if any; called once, before the optimizer is made, on few images."""

    def weight_at(self, epoch: float) -> float:
        """The weight at an epoch (from 0, with the fraction done), for a term whose weight changes; at most `weight`.

        What a term reports stays unweighted. It must depend on nothing but the epoch: it is not part of checkpoints.
        """
        return self.weight

    def cross_entropy_weight_at(self, epoch: float) -> float:
        """The factor on cross-entropy at an epoch, for a term that takes its place in part."""
        return 1.0

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The scalars [] of a batch, one of them under the term's own name."""
        raise TypeError(f"{type(self).__name__} has no forward(inputs); give it one that returns a dict of scalars.")

    def is_silent(self, inputs: LossInputs) -> bool:
        """Whether teacher or student lack a signal that the term needs on both sides; the term is then 0.

        The student has no `input_gradient` where nothing is differentiated, as in validation.
        """
        both = self.needs.of_the_teacher
        return any(signal not in inputs.teacher or signal not in inputs.student for signal in both)
