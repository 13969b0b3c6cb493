"""What is minimised: total = cross-entropy + the sum over terms of weight * term; by default alpha KD + beta AT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.config import Config
from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.user_loaders import check_labels
from attention_transfer.distributed import Runtime
from attention_transfer.errors import ConfigError
from attention_transfer.features.gradients import gradient_by
from attention_transfer.features.maps import SUM_OF_SQUARES, MapFunction, Size
from attention_transfer.features.pairing import StagePair, pair_in_order, pair_stages
from attention_transfer.features.signals import FEATURES, INPUT_GRADIENT, LOGITS, Needs, Signal, StudentOutput
from attention_transfer.features.stages import split_layers, stage_names
from attention_transfer.features.taps import Taps
from attention_transfer.logs import log_once
from attention_transfer.losses.attention import AttentionTransfer
from attention_transfer.losses.kd import KnowledgeDistillation
from attention_transfer.losses.term import LossInputs, LossTerm
from attention_transfer.modules import count_logits, like_weights
from attention_transfer.networks.input_shapes import refusing_misfits
from attention_transfer.teacher.base import Teacher, TeacherOutput
from attention_transfer.teacher.classes import MatchLogits, unchanged


class _LossesOfATeacher(NamedTuple):
    total: Tensor
    classification: Tensor
    kd: Tensor
    attention: Tensor
    per_stage: tuple[Tensor, ...]
    logits: Tensor


class Losses(_LossesOfATeacher):
    """The loss of a batch and what it is made of; a tuple of the six attributes below, in this order.

    Attributes:
        total: classification + the weighted sum of all terms; the only one to call backward() on.
        classification: cross-entropy, mean over the batch.
        kd: distillation, unweighted; 0 without a teacher, where the classes differ (which alpha > 0 refuses), and
            where the teacher was not asked for its logits (in a run whose alpha is 0).
        attention: AT, unweighted, the sum of per_stage; 0 without a teacher.
        per_stage: AT of each compared pair of stages, shallow to deep; empty without a teacher.
        logits: [B, K] of the student.
        scalars: classification, and all that the terms report, by name, unweighted.
    """

    scalars: dict[str, Tensor]

    @classmethod
    def of(cls, total: Tensor, scalars: dict[str, Tensor], logits: Tensor) -> Losses:
        """The losses out of the named scalars."""
        silence = total.new_zeros(())
        stages = tuple(value for name, value in scalars.items() if name.startswith("attention_stage_"))
        kd, attention = scalars.get("kd", silence), scalars.get("attention", silence)
        losses = cls(total, scalars["classification"], kd, attention, stages, logits)
        losses.scalars = scalars
        return losses

    def as_nothing(self) -> Losses:
        """The losses of a stand-in for an empty share as they count: not at all."""
        zero = torch.zeros_like(self.total)
        return Losses.of(zero, dict.fromkeys(self.scalars, zero), self.logits[:0])


def default_terms(config: Config, map_function: MapFunction = SUM_OF_SQUARES) -> list[LossTerm]:
    """alpha KD and beta AT."""
    return [KnowledgeDistillation(config.alpha, config.temperature), AttentionTransfer(config.beta, map_function)]


def needs_of_teacher(terms: Sequence[LossTerm]) -> Needs:
    """What a run asks its teacher for: all that is minimised, and of what is reported alone the maps.

    Other signals cost the network's last layers, or memory, and are left out where nothing is minimised.
    """
    return Needs.union(term.needs if term.weight > 0 else Needs(maps=term.needs.maps) for term in terms)


def combine(
    student: StudentOutput,
    teacher: TeacherOutput,
    labels: Tensor,
    terms: Sequence[LossTerm],
    pairs: Sequence[StagePair] = (),
    epoch: float = 0.0,
) -> Losses:
    """The losses out of what student and teacher put out; a pure function of tensors.

    Args:
        student: its logits [B, K], and the signals that the terms need.
        teacher: its signals; none without a teacher.
        labels: [B], in 0 .. K - 1.
        terms: of the loss.
        pairs: the stages that are compared.
        epoch: from 0, with the fraction done.

    Raises:
        ConfigError: a term with a weight above 0 has nothing to compare, or reports nothing under its own name.
        TeacherError: alpha > 0 and teacher and student have heads of different size.
    """
    logits = student.tensor(LOGITS)
    classification = F.cross_entropy(logits.float(), labels)
    total, scalars = classification, {"classification": classification}
    for term in terms:
        inputs = LossInputs(
            student,
            teacher,
            tuple(pairs),
            labels if term.needs.labels else None,
            epoch if term.needs.epoch else None,
        )
        told = _scalars_of(term, inputs, classification)
        scalars |= told
        if term.weight > 0:
            total = total + term.weight * told[term.name]
    return Losses.of(total, scalars, logits)


def _scalars_of(term: LossTerm, inputs: LossInputs, like: Tensor) -> dict[str, Tensor]:
    if term.is_silent(inputs):
        return {term.name: like.new_zeros(())}
    with torch.set_grad_enabled(torch.is_grad_enabled() and term.weight > 0):
        told: dict[str, Tensor] = term(inputs)
    if not isinstance(told, dict) or not isinstance(told.get(term.name), Tensor) or told[term.name].dim() != 0:
        raise ConfigError(
            f"the loss term {type(term).__name__} must return a dict with a scalar tensor under its name {term.name!r}."
        )
    return told


class Criterion:
    """The loss of a batch: runs the student under taps, calls the teacher, combines.

    Args:
        config: layers is used; alpha, beta and temperature for the default terms.
        teacher: is called with each batch.
        runtime: gives the number format.
        terms: of the loss; None: alpha KD + beta AT.
        match_logits: makes the teacher's logits those of the student's classes; see `teacher.classes`.
    """

    def __init__(
        self,
        config: Config,
        teacher: Teacher,
        runtime: Runtime,
        terms: Sequence[LossTerm] | None = None,
        match_logits: MatchLogits = unchanged,
    ) -> None:
        self.teacher = teacher
        self.match_logits = match_logits
        self.runtime = runtime
        self.terms = list(default_terms(config) if terms is None else terms)
        self.needs = Needs.union(term.needs for term in self.terms)
        self.student_layers, _ = split_layers(config.layers)
        self._are_stages_optional = not any(term.needs.stages and term.weight > 0 for term in self.terms)
        self._pairs: dict[tuple[tuple[Size, ...], tuple[Size, ...]], tuple[StagePair, ...]] = {}
        self._lasting: Taps | None = None
        self._num_classes: int | None = None

    @property
    def num_classes(self) -> int | None:
        """The width of the student's logits, once it has run; labels are checked against it on their way in."""
        return self._num_classes

    def __call__(self, student: nn.Module, batch: Batch, epoch: float = 0.0) -> Losses:
        """The losses of `batch`.

        Args:
            student: in the mode in which the caller has it.
            batch: images and labels on the student's device.
            epoch: from 0, with the fraction done.
        """
        teacher = self.match_logits(self.teacher(batch))
        told = self.observe(student, batch, is_compared=bool(teacher))
        return combine(told, teacher, batch.labels, self.terms, self.pairs(told, teacher), epoch)

    def observe(self, student: nn.Module, batch: Batch, *, is_compared: bool) -> StudentOutput:
        """One pass of the student: its logits, and the signals that the terms need.

        Args:
            student: in the mode in which the caller has it.
            batch: on the student's device.
            is_compared: whether there is a teacher; without one no stage is tapped for terms that compare.
        """
        images = like_weights(batch.images, student)
        needs_gradient = self.needs.input_gradient and torch.is_grad_enabled()
        if needs_gradient:
            images = images.detach().requires_grad_()
        with refusing_misfits(student, images, "student"):
            names = self._stages(student, images) if self.needs.stages and is_compared else ()
            with self.runtime.autocast(), self._listening(student, names) as taps:
                logits = student(images)
        if self._num_classes is None:
            self._num_classes = count_logits(logits)
            check_labels(batch.labels.cpu(), self._num_classes)
        told = StudentOutput({LOGITS: Signal(logits)})
        if names:
            features = tuple(taps.features)
            told |= {f.signal: Signal(tuple(f(x) for x in features)) for f in self.needs.maps}
            if self.needs.features:
                told[FEATURES] = Signal(features)
        if needs_gradient:
            gradient = gradient_by(images, logits, batch.labels, create_graph=True)
            told[INPUT_GRADIENT] = Signal(gradient, depends_on_label=True)
        return told

    def pairs(self, student: StudentOutput, teacher: TeacherOutput) -> tuple[StagePair, ...]:
        """The stages that are compared, at sizes above 1x1; decided once for each pair of sizes."""
        sizes = _stage_sizes(student, self.needs), _stage_sizes(teacher, self.needs)
        if not all(sizes):
            return ()
        if sizes not in self._pairs:
            pairs = (pair_stages if self.student_layers is None else pair_in_order)(*sizes)
            self._pairs[sizes] = tuple(_with_signal(pairs))
        return self._pairs[sizes]

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term by its name."""
        return {term.name: term.weight for term in self.terms}

    def parameters(self) -> Iterator[nn.Parameter]:
        """The terms' own, which are trained with the student's."""
        for term in self.terms:
            yield from term.parameters()

    def _listening(self, student: nn.Module, names: tuple[str, ...]) -> AbstractContextManager[Taps]:
        """Taps for one pass; for a compiled student, whose hooks are compiled with it, the same ones for all."""
        if not hasattr(student, "_orig_mod"):
            return Taps(student, names)
        if self._lasting is None:
            self._lasting = Taps(student, names).__enter__()
        return nullcontext(self._lasting)

    def close(self) -> None:
        """Take the hooks off a compiled student."""
        if self._lasting is not None:
            self._lasting.__exit__(None, None, None)
            self._lasting = None

    def _stages(self, student: nn.Module, images: Tensor) -> tuple[str, ...]:
        try:
            return stage_names(student, images, self.student_layers)
        except ConfigError:
            if not self._are_stages_optional:
                raise
            return ()


def _stage_sizes(output: Mapping[str, Signal], needs: Needs) -> tuple[Size, ...]:
    for name in (*(function.signal for function in needs.maps), FEATURES):
        if name in output:
            stages: Any = output[name].value
            return tuple((x.shape[-2], x.shape[-1]) for x in stages)
    return ()


def _with_signal(pairs: Sequence[StagePair]) -> Iterator[StagePair]:
    for pair in pairs:
        if pair.has_signal:
            yield pair
        else:
            log_once(
                f"stage {pair.student} of the student (with stage {pair.teacher} of the teacher) is 1x1 where they "
                "are compared: it carries no attention and is left out"
            )
