"""What is minimised: total = cross-entropy + alpha KD + beta AT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.config import Config, resolve_config
from attention_transfer.data.batches import Batch
from attention_transfer.data.user_loaders import check_labels
from attention_transfer.distributed import Runtime
from attention_transfer.errors import ConfigError, TeacherError
from attention_transfer.evaluation import count_logits
from attention_transfer.features.maps import energy
from attention_transfer.features.pairing import StagePair, pair_stages
from attention_transfer.features.stages import split_layers, stage_names
from attention_transfer.features.taps import Taps
from attention_transfer.logs import log_once
from attention_transfer.losses.attention import map_distance
from attention_transfer.losses.kd import distillation_loss
from attention_transfer.modules import device_of, like_weights
from attention_transfer.networks.registry import card_of
from attention_transfer.teacher.base import Teacher, TeacherOutput
from attention_transfer.teacher.build import make_teacher


class Losses(NamedTuple):
    """The loss of a batch and what it is made of.

    Attributes:
        total: classification + alpha * kd + beta * attention; the only one to call backward() on.
        classification: cross-entropy, mean over the batch.
        kd: distillation, unweighted; 0 without a teacher, where the heads differ (which alpha > 0 refuses), and where
            the teacher was not asked for its logits (in a run whose alpha is 0).
        attention: AT, unweighted, the sum of per_stage; 0 without a teacher.
        per_stage: AT of each compared pair of stages, shallow to deep; empty without a teacher.
        logits: [B, K] of the student.
    """

    total: Tensor
    classification: Tensor
    kd: Tensor
    attention: Tensor
    per_stage: tuple[Tensor, ...]
    logits: Tensor


def combine(
    student_maps: Sequence[Tensor], logits: Tensor, labels: Tensor, answer: TeacherOutput, config: Config
) -> Losses:
    """The losses out of what student and teacher put out; a pure function of tensors.

    Args:
        student_maps: energies or normalised maps [B, H, W] of the student's stages.
        logits: [B, K] of the student.
        labels: [B], in 0 .. K - 1.
        answer: the teacher's maps and logits, or silence.
        config: alpha, beta, temperature and layers are used.

    Raises:
        ConfigError: beta > 0 and no pair of stages has a signal.
        TeacherError: alpha > 0 and teacher and student have heads of different size.
    """
    classification = F.cross_entropy(logits.float(), labels)
    silence = classification.new_zeros(())
    per_stage = _attention_of_each_stage(student_maps, answer, config)
    attention = torch.stack(per_stage).sum() if per_stage else silence
    kd = silence
    if answer.logits is not None:
        if config.alpha > 0:
            check_equal_heads(logits.shape[1], answer.logits.shape[1])
        if logits.shape == answer.logits.shape:
            with torch.set_grad_enabled(torch.is_grad_enabled() and config.alpha > 0):
                kd = distillation_loss(logits, answer.logits, config.temperature)
    total = classification
    if config.alpha > 0:
        total = total + config.alpha * kd
    if config.beta > 0:
        total = total + config.beta * attention
    return Losses(total, classification, kd, attention, per_stage, logits)


def check_equal_heads(student_classes: int, teacher_classes: int) -> None:
    """Distillation compares class by class, so both heads must be equally wide."""
    if student_classes != teacher_classes:
        raise TeacherError(
            f"alpha > 0 distils logits, but the student tells {student_classes} classes apart and the teacher "
            f"{teacher_classes}; set alpha=0 (attention transfer alone), or train a teacher on these classes."
        )


def check_equal_class_order(student: Sequence[str] | None, teacher: Sequence[str] | None) -> None:
    """Distillation compares class by class, so both must number their classes alike."""
    if student and teacher and list(student) != list(teacher) and set(student) == set(teacher):
        raise TeacherError(
            f"alpha > 0 distils logits, but the teacher numbers its classes {', '.join(teacher)} and the student "
            f"{', '.join(student)}; train a teacher on data that number their classes as the student's do, or set "
            "alpha=0 (attention transfer alone)."
        )


def _attention_of_each_stage(student: Sequence[Tensor], answer: TeacherOutput, config: Config) -> tuple[Tensor, ...]:
    teacher = answer.maps
    if not teacher or not student:
        return ()
    pairs = _pairs(student, teacher, config)
    coverage = answer.coverage or (None,) * len(teacher)
    if not pairs and config.beta > 0:
        raise ConfigError(
            "beta > 0, but no pair of stages is larger than 1x1: the images are too small for these networks; "
            "enlarge image_size, name shallower modules in layers, or set beta=0."
        )
    with torch.set_grad_enabled(torch.is_grad_enabled() and config.beta > 0):
        return tuple(
            map_distance(student[pair.student], teacher[pair.teacher], pair.size, mask=coverage[pair.teacher])
            for pair in pairs
        )


def _pairs(student: Sequence[Tensor], teacher: Sequence[Tensor], config: Config) -> list[StagePair]:
    student_sizes = [(x.shape[-2], x.shape[-1]) for x in student]
    teacher_sizes = [(x.shape[-2], x.shape[-1]) for x in teacher]
    if config.layers is None:
        pairs = pair_stages(student_sizes, teacher_sizes)
    else:
        one_by_one = [pair_stages([s], [t])[0] for s, t in zip(student_sizes, teacher_sizes, strict=True)]
        pairs = [StagePair(i, i, pair.size) for i, pair in enumerate(one_by_one)]
    for pair in pairs:
        if not pair.has_signal:
            log_once(
                f"stage {pair.student} of the student (with stage {pair.teacher} of the teacher) is 1x1 where they "
                "are compared: it carries no attention and is left out"
            )
    return [pair for pair in pairs if pair.has_signal]


class Criterion:
    """The loss of a batch: runs the student under taps, asks the teacher, combines.

    Args:
        config: alpha, beta, temperature and layers are used.
        teacher: who answers.
        runtime: gives the number format.
    """

    def __init__(self, config: Config, teacher: Teacher, runtime: Runtime) -> None:
        self.config = config
        self.teacher = teacher
        self.runtime = runtime
        self.student_layers, _ = split_layers(config.layers)
        self._lasting: Taps | None = None

    def __call__(self, student: nn.Module, batch: Batch, labels: Tensor | None = None) -> Losses:
        """The losses of `batch`, which must be on the student's device.

        Args:
            student: in the mode in which the caller has it.
            batch: images and labels on the student's device.
            labels: the same labels where looking at them waits for nothing, so that wrong ones are named.
        """
        answer = self.teacher(batch)
        images = like_weights(batch.images, student)
        names = self._stages(student, images) if answer.maps else ()
        with self.runtime.autocast(), self._listening(student, names) as taps:
            logits = student(images)
        check_labels(batch.labels if labels is None else labels, count_logits(logits))
        return combine([energy(x) for x in taps.features], logits, batch.labels, answer, self.config)

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
            if self.config.beta > 0:
                raise
            return ()


def _class_names(model: nn.Module) -> tuple[str, ...] | None:
    card = card_of(model)
    return None if card is None else card.class_names


def compute_at_loss(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    x: Tensor,
    y: Tensor,
    config: Config | Mapping[str, Any] | None = None,
) -> Losses:
    """The attention-transfer loss of one batch.

    total = cross-entropy + alpha KD + beta AT; KD = T^2 KL(teacher || student), AT = the sum over stages of the
    mean squared difference of normalised attention maps.

    Args:
        student_model: in the mode in which the caller has it (train mode for training).
        teacher_model: runs in eval mode without gradients, whatever mode it is in, and is left as it was found;
            None makes kd and attention zero.
        x: [B, 3, H, W]; moved to the student's device.
        y: [B], integers in 0 .. K - 1; moved to the student's device.
        config: alpha, beta, temperature and layers are used; a partial dict is completed by the defaults.

    Raises:
        ConfigError: beta > 0 and no pair of stages is larger than 1x1.
        TeacherError: alpha > 0 with heads of different size, or with the same classes in another order.
        DataError: a label out of range.

    Example:
        >>> from attention_transfer import create_model
        >>> student, teacher = create_model("MultiBranchNet", 10), create_model("ResNet18", 10)
        >>> losses = compute_at_loss(student, teacher, torch.rand(4, 3, 64, 64), torch.arange(4))
        >>> losses.total.backward()
    """
    config = resolve_config(config)
    device = device_of(student_model)
    runtime = Runtime(device)
    if teacher_model is not None and config.alpha > 0:
        check_equal_class_order(config.class_names or _class_names(student_model), _class_names(teacher_model))
    if teacher_model is not None:
        teacher_model.to(device)
    criterion = Criterion(config, make_teacher(teacher_model, config, runtime), runtime)
    return criterion(student_model, Batch(x, y).to(device), y)
