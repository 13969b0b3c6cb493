"""The training criterion: runs student and teacher on a batch and computes the losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from attention_transfer.config import Config
from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.user_loaders import check_labels
from attention_transfer.distributed import Runtime
from attention_transfer.errors import ConfigError
from attention_transfer.features.attention_discovery import find_attention
from attention_transfer.features.attention_probabilities import AttentionLayout
from attention_transfer.features.coverage import only_where_shown
from attention_transfer.features.pairing import StagePair, pair_by_depth, pair_in_order, pair_stages
from attention_transfer.features.probe import Probe
from attention_transfer.features.signals import FEATURES, LOGITS, Needs, Output, Signal, StudentOutput
from attention_transfer.features.stages.choose import choose_stages, split_layers
from attention_transfer.features.stages.stage import Stage
from attention_transfer.logs import log_once
from attention_transfer.losses.classification import PLAIN, CrossEntropy, Mixed
from attention_transfer.losses.labels import Labelled, refuse_mixed_labels
from attention_transfer.losses.term import LossTerm
from attention_transfer.losses.total import Losses, combine, default_terms
from attention_transfer.modules import count_logits, like_weights
from attention_transfer.networks.architecture import Size
from attention_transfer.networks.input_shapes import raise_if_misfit
from attention_transfer.teacher.base import Teacher, TeacherOutput
from attention_transfer.teacher.classes import MatchLogits
from attention_transfer.training.criterion.student_gradient import StudentGradient

Pairing = Callable[[Sequence[Size], Sequence[Size]], list[StagePair]]


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
        self._gradient = StudentGradient(self.terms, config, runtime)
        self._pairs: dict[tuple[Pairing, tuple[Size, ...], tuple[Size, ...]], tuple[StagePair, ...]] = {}
        self._probes: dict[tuple[nn.Module, torch.Size | None], Probe | None] = {}
        self._num_classes: int | None = None

    @property
    def num_classes(self) -> int | None:
        """K of the student's logits [B, K]; None before its first forward pass. Labels are checked against it."""
        return self._num_classes

    def __call__(
        self,
        student: nn.Module,
        batch: Batch,
        epoch: float = 0.0,
        *,
        is_stand_in: bool = False,
        labelled: Labelled | None = None,
        emphasis: Tensor | None = None,
    ) -> Losses:
        """Compute the losses of a batch.

        Args:
            student: run in its current mode (train or eval).
            batch: images [B, C, H, W] and labels [B], on the student's device.
            epoch: from 0, including the fraction of the current one.
            is_stand_in: the batch takes the place of an empty share, and counts for nothing.
            labelled: how many of the images have a label; None: they are counted, where labels are on the CPU.
            emphasis: a factor [] of the cross-entropy, see `emphases`; None: 1.
        """
        labelled = labelled or Labelled.of(batch.labels)
        try:
            teacher = self.ask_teacher(batch)
            output = self.observe(student, batch, is_compared=bool(teacher))
        except Exception as error:
            raise_if_misfit(error, student, batch.images, "student")
            raise
        if batch.mixing is not None:
            refuse_mixed_labels(self.terms)
        classify = partial(
            self._classification, mixed=batch.mixing, labelled=labelled, is_stand_in=is_stand_in, emphasis=emphasis
        )
        pairs, map_pairs = self.pairs(output, teacher), self.map_pairs(output, teacher)
        return combine(output, teacher, batch.labels, self.terms, pairs, epoch, classify, map_pairs, labelled)

    def _classification(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        mixed: Mixed | None,
        labelled: Labelled,
        is_stand_in: bool,
        emphasis: Tensor | None,
    ) -> Tensor:
        """The cross-entropy []; with weighted classes, this process's part of the mean over the global batch.

        Processes are averaged by their numbers of images, while a weighted mean divides by the sum of the weights: so
        it is multiplied by the mean weight here, over the mean weight in the global batch.
        """
        mean = self._cross_entropy(logits, labels, mixed, are_all_labelled=labelled.is_all)
        mean = mean if emphasis is None else mean * emphasis
        if not self._cross_entropy.is_weighted or self.runtime.world_size == 1:
            return mean if labelled.share == 1 else mean * labelled.share
        weight = self._cross_entropy.sum_of_weights(labels, mixed)
        mine = torch.stack([torch.full_like(weight, len(labels)), weight])
        images, weights = self.runtime.sum_over_processes(torch.zeros_like(mine) if is_stand_in else mine.clone())
        share: Tensor = (mine[1] / mine[0]) / (weights / images).clamp_min(torch.finfo(torch.float32).tiny)
        return mean * share

    @property
    def weighs_classes(self) -> bool:
        """Whether cross-entropy has class weights, so that `emphases` are not all 1."""
        return self._cross_entropy.is_weighted

    def emphases(self, batches: Sequence[Batch]) -> Tensor:
        """How much the cross-entropy of each batch counts beside the others of a group [N], by their class weights.

        The batches of a step are averaged by their numbers of images, while a weighted mean over all of their images
        divides by the sum of the weights: so each batch's is multiplied by its mean weight over that of the group.
        Every process must call this together, with its shares of the batches.
        """
        of_each = [
            torch.stack([x.labels.new_tensor(len(x.labels)).float(), self._weight_of(x)]).to(self.runtime.device)
            for x in batches
        ]
        images, weights = self.runtime.sum_over_processes(torch.stack(of_each)).unbind(1)
        mean = (weights.sum() / images.sum()).clamp_min(torch.finfo(torch.float32).tiny)
        return weights / images / mean

    def _weight_of(self, batch: Batch) -> Tensor:
        return self._cross_entropy.sum_of_weights(batch.labels, batch.mixing)

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
        needs_gradient = self._gradient.is_needed(is_compared=is_compared)
        if needs_gradient:
            images = images.detach().requires_grad_()
        probe = self._probe_on(student, images) if self.needs.probed and is_compared else None
        differentiable = self._gradient.forward_pass(student) if needs_gradient else nullcontext()
        with self.runtime.autocast(), probe or nullcontext(), differentiable:
            logits = student(images)
        if self._num_classes is None:
            self._num_classes = count_logits(logits)
            check_labels(batch.labels.cpu(), self._num_classes)
        output = StudentOutput() if probe is None else StudentOutput(probe.signals())
        if needs_gradient:
            output |= self._gradient.signals(student, images, logits, batch.labels)
        # where nothing is trained, the graph was for the gradient by the input alone
        output[LOGITS] = Signal(logits if torch.is_grad_enabled() else logits.detach())
        return output

    def pairs(self, student: StudentOutput, teacher: TeacherOutput) -> tuple[StagePair, ...]:
        """The stages to compare, larger than 1x1; decided once for each combination of stage sizes."""
        mine, theirs = _stage_sizes(student, self.needs), _stage_sizes(teacher, self.needs)
        return self._paired(pair_stages if self.student_layers is None else pair_in_order, mine, theirs)

    def map_pairs(self, student: StudentOutput, teacher: TeacherOutput) -> dict[str, tuple[StagePair, ...]]:
        """The maps to compare, by the name of the signal, that are not of features: paired by relative depth."""
        names = [function.signal for function in self.needs.maps if function.of != FEATURES]
        return {
            name: self._paired(pair_by_depth, _sizes(student.stages(name)), _sizes(teacher.stages(name)))
            for name in names
        }

    def _paired(self, pair: Pairing, mine: tuple[Size, ...], theirs: tuple[Size, ...]) -> tuple[StagePair, ...]:
        if not mine or not theirs:
            return ()
        key = pair, mine, theirs
        if key not in self._pairs:
            self._pairs[key] = tuple(_with_signal(pair(mine, theirs)))
        return self._pairs[key]

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term by its name."""
        return {term.name: term.weight for term in self.terms}

    def parameters(self) -> Iterator[nn.Parameter]:
        """The loss terms' own parameters, trained along with the student's."""
        for term in self.terms:
            yield from term.parameters()

    def _probe_on(self, student: nn.Module, images: Tensor) -> Probe | None:
        """A probe on stages and blocks, which are decided once for each student and shape of images; None without."""
        # a compiled student keeps the hooks of its first batch, as they are compiled with it
        is_compiled = hasattr(student, "_orig_mod")
        key = student, None if is_compiled else images.shape[1:]
        if key not in self._probes:
            stages = self._stages(student, images) if self.needs.stages else ()
            layout = self._layout(student, images) if self.needs.blocks else None
            has_any = stages or layout is not None
            self._probes[key] = Probe(student, self.needs, stages, layout, stay=is_compiled) if has_any else None
        return self._probes[key]

    def close(self) -> None:
        """Remove the hooks from a compiled student, and forget the students."""
        for probe in self._probes.values():
            if probe is not None:
                probe.close()
        self._probes.clear()

    def _layout(self, student: nn.Module, images: Tensor) -> AttentionLayout | None:
        try:
            return find_attention(student, images.detach())
        except ConfigError:
            if any(term.needs.blocks and term.weight > 0 for term in self.terms):
                raise
            return None

    def _stages(self, student: nn.Module, images: Tensor) -> tuple[Stage, ...]:
        try:
            return choose_stages(student, images, self.student_layers).stages
        except ConfigError:
            if not self._are_stages_optional:
                raise
            return ()


def _stage_sizes(output: Output, needs: Needs) -> tuple[Size, ...]:
    for name in (*(function.signal for function in needs.maps_of(FEATURES)), FEATURES):
        if name in output:
            return _sizes(output.stages(name))
    return ()


def _sizes(stages: Sequence[Tensor]) -> tuple[Size, ...]:
    return tuple((x.shape[-2], x.shape[-1]) for x in stages)


def _with_signal(pairs: Sequence[StagePair]) -> Iterator[StagePair]:
    for pair in pairs:
        if pair.has_signal:
            yield pair
        else:
            log_once(
                f"stage {pair.student} of the student (with stage {pair.teacher} of the teacher) is 1x1 where they "
                "are compared: it carries no attention and is left out"
            )
