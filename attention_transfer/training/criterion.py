"""The training criterion: runs student and teacher on a batch and computes the losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.config import Config
from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.user_loaders import check_labels
from attention_transfer.distributed import Runtime
from attention_transfer.errors import ConfigError
from attention_transfer.features.coverage import only_where_shown
from attention_transfer.features.gradients import gradient_by
from attention_transfer.features.maps import Size, at_least_float32
from attention_transfer.features.pairing import StagePair, pair_in_order, pair_stages
from attention_transfer.features.signals import FEATURES, INPUT_GRADIENT, LOGITS, Needs, Signal, StudentOutput
from attention_transfer.features.stages import split_layers, stage_names
from attention_transfer.features.taps import Taps
from attention_transfer.logs import log_once
from attention_transfer.losses.classification import PLAIN, CrossEntropy
from attention_transfer.losses.term import LossTerm
from attention_transfer.losses.total import Losses, combine, default_terms
from attention_transfer.modules import count_logits, like_weights
from attention_transfer.networks.input_shapes import raise_if_misfit
from attention_transfer.teacher.base import Teacher, TeacherOutput
from attention_transfer.teacher.classes import MatchLogits


class Criterion:
    """The training criterion: runs student and teacher on a batch and computes the losses.

    Args:
        config: uses layers; alpha, beta and temperature for the default terms.
        teacher: called with each batch.
        runtime: gives the number format.
        terms: the loss terms; None: alpha KD + beta AT.
        match_logits: reorders the teacher's logits to the student's classes; see `teacher.classes`. None: they agree.
        cross_entropy: smoothed and weighted as training has it; validation measures the plain one.

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
        cross_entropy: CrossEntropy = PLAIN,
    ) -> None:
        self.teacher = teacher
        self._match_logits = match_logits
        self._cross_entropy = cross_entropy
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

    def __call__(self, student: nn.Module, batch: Batch, epoch: float = 0.0, *, is_stand_in: bool = False) -> Losses:
        """Compute the losses of a batch.

        Args:
            student: run in its current mode (train or eval).
            batch: images [B, C, H, W] and labels [B], on the student's device.
            epoch: from 0, including the fraction of the current one.
            is_stand_in: the batch takes the place of an empty share, and counts for nothing.
        """
        try:
            teacher = self.ask_teacher(batch)
            output = self.observe(student, batch, is_compared=bool(teacher))
        except Exception as error:
            raise_if_misfit(error, student, batch.images, "student")
            raise
        classify = partial(self._classification, is_stand_in=is_stand_in)
        return combine(output, teacher, batch.labels, self.terms, self.pairs(output, teacher), epoch, classify)

    def _classification(self, logits: Tensor, labels: Tensor, *, is_stand_in: bool) -> Tensor:
        """The cross-entropy []; with weighted classes, this process's part of the mean over the global batch.

        Processes are averaged by their numbers of images, while a weighted mean divides by the sum of the weights: so
        it is multiplied by the mean weight here, over the mean weight in the global batch.
        """
        mean = self._cross_entropy(logits, labels)
        if not self._cross_entropy.is_weighted or self.runtime.world_size == 1:
            return mean
        mine = torch.stack([labels.new_tensor(len(labels)).float(), self._cross_entropy.sum_of_weights(labels)])
        images, weights = self.runtime.sum_over_processes(torch.zeros_like(mine) if is_stand_in else mine.clone())
        share: Tensor = (mine[1] / mine[0]) / (weights / images)
        return mean * share

    def ask_teacher(self, batch: Batch) -> TeacherOutput:
        """The teacher's signals for a batch [B, C, H, W], its logits in the order of the student's classes."""
        output = only_where_shown(self.teacher(batch), batch.shown)
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
