"""The training loss: cross-entropy + the sum over terms of weight * term; by default alpha KD + beta AT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
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
from attention_transfer.features.maps import SUM_OF_SQUARES, MapFunction, Size, at_least_float32
from attention_transfer.features.pairing import StagePair, pair_in_order, pair_stages
from attention_transfer.features.signals import FEATURES, INPUT_GRADIENT, LOGITS, Needs, Signal, StudentOutput
from attention_transfer.features.stages import split_layers, stage_names
from attention_transfer.features.taps import Taps
from attention_transfer.logs import log_once
from attention_transfer.losses.attention import AttentionTransfer
from attention_transfer.losses.kd import KnowledgeDistillation
from attention_transfer.losses.term import RESERVED, LossInputs, LossTerm
from attention_transfer.modules import count_logits, like_weights
from attention_transfer.networks.input_shapes import raise_if_misfit
from attention_transfer.teacher.base import Teacher, TeacherOutput
from attention_transfer.teacher.classes import MatchLogits


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
        classification: cross-entropy, mean over the batch.
        kd: distillation, unweighted; 0 without a teacher, where the classes differ (which alpha > 0 refuses), and
            where the teacher does not output logits (in a run whose alpha is 0).
        attention: AT, unweighted, the sum of per_stage; 0 without a teacher.
        per_stage: AT of each compared pair of stages, shallow to deep; empty without a teacher.
        logits: [B, K] of the student.
        scalars: classification and everything the terms report, by name, unweighted.
    """

    scalars: dict[str, Tensor]

    @classmethod
    def of(cls, total: Tensor, scalars: dict[str, Tensor], logits: Tensor) -> Losses:
        """Build the losses from named scalars.

        Args:
            total: scalar tensor, with gradient.
            scalars: classification and everything the terms report, by name; scalar tensors.
            logits: [B, K] of the student.
        """
        zero = total.new_zeros(())
        stages = tuple(value for name, value in scalars.items() if name.startswith("attention_stage_"))
        kd, attention = scalars.get("kd", zero), scalars.get("attention", zero)
        losses = cls(total, scalars["classification"], kd, attention, stages, logits)
        losses.scalars = scalars
        return losses

    def as_nothing(self) -> Losses:
        """The losses of a stand-in batch: all zero, and logits [0, K], so that they add nothing to any mean."""
        zero = torch.zeros_like(self.total)
        return Losses.of(zero, dict.fromkeys(self.scalars, zero), self.logits[:0])


def default_terms(config: Config, map_function: MapFunction = SUM_OF_SQUARES) -> list[LossTerm]:
    """The default loss terms: alpha KD and beta AT."""
    return [KnowledgeDistillation(config.alpha, config.temperature), AttentionTransfer(config.beta, map_function)]


def needs_of_teacher(terms: Sequence[LossTerm]) -> Needs:
    """The signals the teacher must output: all that terms need, but no logits for KD of weight 0.

    Those logits would cost the network's last layers, or room in the cache, in every run whose alpha is 0.
    """
    return Needs.union(
        Needs() if isinstance(term, KnowledgeDistillation) and not term.weight else term.needs for term in terms
    )


def combine(
    student: StudentOutput,
    teacher: TeacherOutput,
    labels: Tensor,
    terms: Sequence[LossTerm],
    pairs: Sequence[StagePair] = (),
    epoch: float = 0.0,
) -> Losses:
    """Compute the losses from the outputs of student and teacher; a pure function of tensors.

    Args:
        student: its logits [B, K], and the signals that the terms need.
        teacher: its signals; empty without a teacher.
        labels: [B], in 0 .. K - 1.
        terms: the loss terms.
        pairs: the stages to compare.
        epoch: from 0, including the fraction of the current one.

    Returns:
        the losses: scalars, and the student's logits [B, K].

    Raises:
        ConfigError: a term with weight > 0 has nothing to compare, or reports nothing under its own name.
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
        reported = _scalars_of(term, inputs, classification)
        if taken := sorted(reported.keys() & (RESERVED | scalars.keys())):
            raise ConfigError(f"the loss term {type(term).__name__} reports {taken[0]!r}, which is taken; rename it.")
        scalars |= reported
        if term.weight > 0:
            total = total + term.weight * reported[term.name]
    return Losses.of(total, scalars, logits)


def _scalars_of(term: LossTerm, inputs: LossInputs, like: Tensor) -> dict[str, Tensor]:
    if term.is_silent(inputs):
        return {term.name: like.new_zeros(())}
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


class Criterion:
    """The training criterion: runs student and teacher on a batch and computes the losses.

    Args:
        config: uses layers; alpha, beta and temperature for the default terms.
        teacher: called with each batch.
        runtime: gives the number format.
        terms: the loss terms; None: alpha KD + beta AT.
        match_logits: reorders the teacher's logits to the student's classes; see `teacher.classes`. None: they agree.

    Attributes:
        modules: the terms as one module, which goes into train and eval mode along with the student.
    """

    def __init__(
        self,
        config: Config,
        teacher: Teacher,
        runtime: Runtime,
        terms: Sequence[LossTerm] | None = None,
        match_logits: MatchLogits | None = None,
    ) -> None:
        self.teacher = teacher
        self._match_logits = match_logits
        self.runtime = runtime
        self.terms = list(default_terms(config) if terms is None else terms)
        self.modules = nn.ModuleList(self.terms)
        self.needs = Needs.union(term.needs for term in self.terms)
        self.student_layers, _ = split_layers(config.layers)
        self._are_stages_optional = not any(term.needs.stages and term.weight > 0 for term in self.terms)
        self._pairs: dict[tuple[tuple[Size, ...], tuple[Size, ...]], tuple[StagePair, ...]] = {}
        self._taps: dict[tuple[nn.Module, torch.Size | None], Taps | None] = {}
        self._num_classes: int | None = None

    @property
    def num_classes(self) -> int | None:
        """K of the student's logits [B, K]; None before its first forward pass. Labels are checked against it."""
        return self._num_classes

    def __call__(self, student: nn.Module, batch: Batch, epoch: float = 0.0) -> Losses:
        """Compute the losses of a batch.

        Args:
            student: run in its current mode (train or eval).
            batch: images [B, C, H, W] and labels [B], on the student's device.
            epoch: from 0, including the fraction of the current one.
        """
        try:
            teacher = self.ask_teacher(batch)
            output = self.observe(student, batch, is_compared=bool(teacher))
        except Exception as error:
            raise_if_misfit(error, student, batch.images, "student")
            raise
        return combine(output, teacher, batch.labels, self.terms, self.pairs(output, teacher), epoch)

    def ask_teacher(self, batch: Batch) -> TeacherOutput:
        """The teacher's signals for a batch [B, C, H, W], its logits in the order of the student's classes."""
        output = self.teacher(batch)
        return output if self._match_logits is None else self._match_logits(output)

    def observe(self, student: nn.Module, batch: Batch, *, is_compared: bool) -> StudentOutput:
        """Run the student: its logits [B, K], and the signals that the terms need.

        Args:
            student: run in its current mode (train or eval).
            batch: images [B, C, H, W] and labels [B], on the student's device.
            is_compared: whether there is a teacher; without one no stage is hooked.
        """
        images = like_weights(batch.images, student)
        needs_gradient = self.needs.input_gradient and torch.is_grad_enabled()
        if needs_gradient:
            images = images.detach().requires_grad_()
        taps = self._taps_on(student, images) if self.needs.stages and is_compared else None
        with self.runtime.autocast(), taps or nullcontext():
            logits = student(images)
        if self._num_classes is None:
            self._num_classes = count_logits(logits)
            check_labels(batch.labels.cpu(), self._num_classes)
        output = StudentOutput({LOGITS: Signal(logits)})
        if taps is not None:
            features = taps.take()
            output |= {f.signal: Signal(tuple(f(x) for x in features)) for f in self.needs.maps}
            if self.needs.features:
                # a term's own layers are float32 whatever the student runs in
                output[FEATURES] = Signal(tuple(map(at_least_float32, features)))
        if needs_gradient:
            gradient = gradient_by(images, logits, batch.labels, create_graph=True)
            output[INPUT_GRADIENT] = Signal(gradient, depends_on_label=True)
        return output

    def pairs(self, student: StudentOutput, teacher: TeacherOutput) -> tuple[StagePair, ...]:
        """The stages to compare, larger than 1x1; decided once for each combination of stage sizes."""
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
        """The loss terms' own parameters, trained along with the student's."""
        for term in self.terms:
            yield from term.parameters()

    def _taps_on(self, student: nn.Module, images: Tensor) -> Taps | None:
        """Taps on the stages, which are decided once for each student and shape of images; None if it has none."""
        # a compiled student keeps the hooks of its first batch, as they are compiled with it
        is_compiled = hasattr(student, "_orig_mod")
        key = student, None if is_compiled else images.shape[1:]
        if key not in self._taps:
            names = self._stages(student, images)
            self._taps[key] = Taps(student, names, stay=is_compiled) if names else None
        return self._taps[key]

    def close(self) -> None:
        """Remove the hooks from a compiled student, and forget the students."""
        for taps in self._taps.values():
            if taps is not None:
                taps.close()
        self._taps.clear()

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
