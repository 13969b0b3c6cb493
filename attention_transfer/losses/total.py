"""The training loss: cross-entropy + the sum over terms of weight * term; by default alpha KD + beta AT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attention_transfer.config import Config
from attention_transfer.errors import ConfigError
from attention_transfer.features.maps import MapFunction
from attention_transfer.features.pairing import StagePair
from attention_transfer.features.signals import LOGITS, Needs, StudentOutput, TeacherOutput
from attention_transfer.losses.classification import PLAIN
from attention_transfer.losses.configured import attention_term, feature_terms, logit_term
from attention_transfer.losses.labels import Labelled, needs_labels, only_labelled
from attention_transfer.losses.logits.term import LogitDistillation
from attention_transfer.losses.term import RESERVED, LossInputs, LossTerm


class _LossesTuple(NamedTuple):
    total: Tensor
    classification: Tensor
    kd: Tensor
    attention: Tensor
    per_stage: tuple[Tensor, ...]
    logits: Tensor


class Losses(_LossesTuple):
    """The loss of a batch and its components: a named tuple of the first six attributes below, in this order.

    Attributes:
        total: classification + the weighted sum of all terms; the only one to call backward() on.
        classification: cross-entropy, mean over the batch; smoothed and weighted where it is trained on, if set.
        kd: distillation, unweighted; 0 without a teacher, where the classes differ (which alpha > 0 refuses), and
            where the teacher does not output logits (in a run whose alpha is 0).
        attention: AT, unweighted, the sum of per_stage; 0 without a teacher.
        per_stage: AT of each compared pair of stages, shallow to deep; empty without a teacher.
        logits: [B, K] of the student.
        scalars: classification and everything the terms report, by name, unweighted.
        of_labelled: the names of the scalars that are means over the labelled images alone.
    """

    scalars: dict[str, Tensor]
    of_labelled: frozenset[str]

    @classmethod
    def of(
        cls,
        total: Tensor,
        scalars: dict[str, Tensor],
        logits: Tensor,
        of_labelled: frozenset[str] = frozenset({"classification"}),
    ) -> Losses:
        """Build the losses from named scalars.

        Args:
            total: scalar tensor, with gradient.
            scalars: classification and everything the terms report, by name; scalar tensors.
            logits: [B, K] of the student.
            of_labelled: the scalars that are means over the labelled images alone.
        """
        zero = total.new_zeros(())
        stages = tuple(value for name, value in scalars.items() if name.startswith("attention_stage_"))
        kd, attention = scalars.get("kd", zero), scalars.get("attention", zero)
        losses = cls(total, scalars["classification"], kd, attention, stages, logits)
        losses.scalars, losses.of_labelled = scalars, of_labelled
        return losses

    def as_nothing(self) -> Losses:
        """The losses of a stand-in batch: all zero, and logits [0, K], so that they add nothing to any mean."""
        zero = torch.zeros_like(self.total)
        return Losses.of(zero, dict.fromkeys(self.scalars, zero), self.logits[:0], self.of_labelled)


def default_terms(config: Config, map_function: MapFunction | None = None) -> list[LossTerm]:
    """The loss terms that the settings name: alpha KD and beta AT, and hints where their weight is above 0.

    Args:
        config: the settings of the loss are used.
        map_function: the user's own kind of attention map, instead of the one that the settings name.

    Raises:
        ConfigError: there is one, and the settings name another.
    """
    return [logit_term(config), attention_term(config, map_function), *feature_terms(config)]


def needs_of_teacher(terms: Sequence[LossTerm]) -> Needs:
    """The signals the teacher must output: all that terms need, but no logits for KD of weight 0.

    Those logits would cost the network's last layers, or room in the cache, in every run whose alpha is 0.
    """
    return Needs.union(
        Needs() if isinstance(term, LogitDistillation) and not term.weight else term.needs for term in terms
    )


def combine(
    student: StudentOutput,
    teacher: TeacherOutput,
    labels: Tensor,
    terms: Sequence[LossTerm],
    pairs: Sequence[StagePair] = (),
    epoch: float = 0.0,
    cross_entropy: Callable[[Tensor, Tensor], Tensor] = PLAIN,
    map_pairs: Mapping[str, tuple[StagePair, ...]] | None = None,
    labelled: Labelled | None = None,
) -> Losses:
    """Compute the losses from the outputs of student and teacher; a pure function of tensors.

    Args:
        student: its logits [B, K], and the signals that the terms need.
        teacher: its signals; empty without a teacher.
        labels: [B], in 0 .. K - 1; UNLABELLED for an image without one, which terms that need labels do not see.
        terms: the loss terms.
        pairs: the stages to compare.
        epoch: from 0, including the fraction of the current one.
        cross_entropy: from logits [B, K] in float32 and labels [B] to the mean over the batch.
        map_pairs: the maps to compare that are not of features; see `LossInputs`.
        labelled: how many images have a label; None: all.

    Returns:
        the losses: scalars, and the student's logits [B, K].

    Raises:
        ConfigError: a term with weight > 0 has nothing to compare, or reports nothing under its own name.
        TeacherError: alpha > 0 and teacher and student have heads of different size.
    """
    logits = student.tensor(LOGITS)
    classification = cross_entropy(logits.float(), labels)
    scalars, weighted, share = {"classification": classification}, [], 1.0
    of_labelled = {"classification"}
    for term in terms:
        inputs = LossInputs(
            student,
            teacher,
            tuple(pairs),
            labels if term.needs.labels else None,
            epoch if term.needs.epoch else None,
            map_pairs or {},
        )
        factor = 1.0
        if labelled is not None and not labelled.is_all and needs_labels(term):
            inputs, some = only_labelled(inputs, labels, term.needs)
            factor = labelled.share if some else 0.0
        is_silent = term.is_silent(inputs)
        if is_silent:
            _refuse_to_be_silent(term, teacher)
        reported = {term.name: classification.new_zeros(())} if is_silent else _scalars_of(term, inputs)
        if taken := sorted(reported.keys() & (RESERVED | scalars.keys())):
            raise ConfigError(f"the loss term {type(term).__name__} reports {taken[0]!r}, which is taken; rename it.")
        if factor != 1:
            reported = {name: factor * value for name, value in reported.items()}
        scalars |= reported
        of_labelled |= reported.keys() if needs_labels(term) else set()
        if term.weight > 0:
            weighted.append(term.weight_at(epoch) * reported[term.name])
        if not is_silent:
            share *= term.cross_entropy_weight_at(epoch)
    total = sum(weighted, start=classification if share == 1 else share * classification)
    return Losses.of(total, scalars, logits, frozenset(of_labelled))


def _refuse_to_be_silent(term: LossTerm, teacher: TeacherOutput) -> None:
    """Refuse a term that counts, and that a teacher which is there leaves without what it needs.

    Raises:
        ConfigError: names the term and the signal.
    """
    missing = [name for name in term.needs.of_the_teacher if name not in teacher]
    if term.weight > 0 and teacher and missing:
        raise ConfigError(
            f"the loss term {term.name!r} needs the teacher's {missing[0]}, which this teacher does not have (the log "
            "says why): the term would be 0; take another teacher, name modules in layers, or leave the term out."
        )


def _scalars_of(term: LossTerm, inputs: LossInputs) -> dict[str, Tensor]:
    with torch.set_grad_enabled(torch.is_grad_enabled() and term.weight > 0):
        reported: dict[str, Tensor] = term(inputs)
    scalars = reported if isinstance(reported, dict) else {}
    odd = [name for name, value in scalars.items() if not isinstance(value, Tensor) or value.dim() != 0]
    if term.name not in scalars or odd:
        raise ConfigError(
            f"the loss term {type(term).__name__} must return a dict of scalar tensors, one of them under its name "
            f"{term.name!r}" + (f"; {odd[0]!r} is none." if odd else ".")
        )
    return scalars
