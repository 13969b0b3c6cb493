"""For a custom training loop: the loss of a batch, one epoch of training, one epoch of validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.config import Config, resolve_config
from attention_transfer.data.batches import Batch
from attention_transfer.devices import resolve_device
from attention_transfer.distributed import Runtime
from attention_transfer.errors import ConfigError
from attention_transfer.losses.classification import PLAIN, CrossEntropy
from attention_transfer.losses.labels import Labelled
from attention_transfer.losses.term import LossTerm
from attention_transfer.losses.total import Losses, default_terms, needs_of_teacher
from attention_transfer.modules import device_of, refuse_data_parallel
from attention_transfer.networks.class_lists import network_classes
from attention_transfer.teacher.base import NoTeacher
from attention_transfer.teacher.build import make_teacher
from attention_transfer.teacher.classes import match_logits
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.epoch import run_training_epoch, run_validation_epoch
from attention_transfer.training.epoch_progress import EpochProgress
from attention_transfer.training.optim.updates import UpdateRule
from attention_transfer.training.setup.checking import check_trainable
from attention_transfer.training.setup.terms import check_terms


def compute_at_loss(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    x: Tensor,
    y: Tensor,
    config: Config | Mapping[str, Any] | None = None,
    terms: Sequence[LossTerm] = (),
    epoch: float | None = None,
) -> Losses:
    """The attention-transfer loss of one batch.

    total = cross-entropy + alpha KD + beta AT; by default KD = T^2 KL(teacher || student), and AT = the sum over stages
    of the mean squared difference of normalised attention maps.

    Args:
        student_model: run in its current mode; set it to train mode for training.
        teacher_model: run in eval mode without gradients, and left unchanged; None makes kd and attention zero.
        x: images [B, 3, H, W]; moved to the student's device.
        y: labels [B], integers in 0 .. K - 1, or -100 for an image without one; moved to the student's device.
        config: uses the settings of the loss, label_smoothing, class_weights (as a list), layers and class_names (of
            the student, if it has no names itself); a partial dict is completed by the defaults.
        terms: further loss terms, beside alpha KD and beta AT.
        epoch: epochs trained so far, with the fraction of the current one, for terms that need it; None: 0, unless the
            settings have a weight that changes with it.

    Classes are matched by name: a teacher may number them differently, and have more of them. A module of your own
    gives its names in an attribute `class_names`; if one side has none, classes are matched by index.

    Returns:
        the losses: scalars, the AT of each pair of stages, and the student's logits [B, K].

    Raises:
        ConfigError: beta > 0 and no pair of stages is larger than 1x1.
        TeacherError: alpha > 0, and the teacher lacks some of the student's classes.
        DataError: a label out of range.

    Example:
        >>> from attention_transfer import create_model
        >>> student, teacher = create_model("MultiBranchNet", 10), create_model("ResNet18", 10)
        >>> losses = compute_at_loss(student, teacher, torch.rand(4, 3, 64, 64), torch.arange(4))
        >>> losses.total.backward()
    """
    device = device_of(student_model)
    criterion, runtime = _set_up(student_model, teacher_model, device, config, terms, epoch, trains=True)
    with closing(criterion):
        batch = Batch(x, y).to(runtime.device)
        return criterion(student_model, batch, epoch or 0.0, labelled=Labelled.of(y))


def train_epoch(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    train_loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    device: str | torch.device = "auto",
    config: Config | Mapping[str, Any] | None = None,
    terms: Sequence[LossTerm] = (),
    epoch: int | None = None,
) -> dict[str, float]:
    """Train for one epoch.

    A custom loop around this function gets a new order and new augmentation in each epoch, as our loaders advance by
    themselves.

    Args:
        student_model: trained in place, in train mode.
        teacher_model: left unchanged; None trains with cross-entropy alone.
        train_loader: any iterable of (images, labels).
        optimizer: over the student's parameters.
        device: the networks are moved there.
        config: uses the settings of the loss, label_smoothing, class_weights (as a list), layers, class_names,
            accumulate and clip_grad.
        terms: further loss terms, beside alpha KD and beta AT; the optimizer must have their parameters too.
        epoch: its number, from 0, for terms that need it; None: 0, unless the settings have a weight that changes with
            it.

    Returns:
        means over samples: loss, accuracy (fraction), classification, kd, attention, attention_stage_i, and what the
        terms report.

    Raises:
        DivergenceError: a loss was not a finite number; names the batch and the component.
        DataError: the loader was empty, a label out of range, or the student cannot take the images.
        TeacherError: the teacher cannot take the images.
        ConfigError: the student has no trainable parameters.
    """
    check_trainable(student_model)
    criterion, runtime = _set_up(student_model, teacher_model, device, config, terms, epoch, trains=True)
    length = len(train_loader) if isinstance(train_loader, Sized) else None
    progress = EpochProgress(runtime, criterion.weights, epoch or 0, length)
    config = resolve_config(config)
    rule = UpdateRule(config.accumulate, config.clip_grad)
    with closing(criterion):
        return run_training_epoch(
            criterion, student_model, train_loader, optimizer, runtime, progress=progress, rule=rule
        ).figures


def validate(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    val_loader: Iterable[Any],
    device: str | torch.device = "auto",
    config: Config | Mapping[str, Any] | None = None,
    terms: Sequence[LossTerm] = (),
    epoch: float | None = None,
) -> dict[str, float]:
    """Validate a student on a loader: eval mode, no gradients; networks are left unchanged.

    Args:
        student_model: run in eval mode.
        teacher_model: run in eval mode; None makes kd and attention zero.
        val_loader: any iterable of (images, labels).
        device: the networks are moved there.
        config: uses the settings of the loss, layers and class_names; the cross-entropy is neither smoothed nor
            weighted.
        terms: further loss terms, beside alpha KD and beta AT.
        epoch: epochs trained so far, with the fraction of the current one, for terms that need it; None: 0, unless the
            settings have a weight that changes with it.

    Returns:
        means over samples: loss, accuracy and balanced_accuracy (fractions), classification, kd, attention,
        attention_stage_i, and what the terms report.

    Raises:
        DataError: the loader was empty, a label out of range, or the student cannot take the images.
        TeacherError: the teacher cannot take the images.
    """
    criterion, runtime = _set_up(student_model, teacher_model, device, config, terms, epoch)
    with closing(criterion):
        return run_validation_epoch(criterion, student_model, val_loader, runtime, epoch=epoch or 0.0).figures


def _set_up(
    student: nn.Module,
    teacher: nn.Module | None,
    device: str | torch.device,
    config: Config | Mapping[str, Any] | None,
    terms: Sequence[LossTerm] = (),
    epoch: float | None = None,
    *,
    trains: bool = False,
) -> tuple[Criterion, Runtime]:
    config = resolve_config(config)
    if config.hint > 0:
        raise ConfigError(
            "hint is above 0: its projectors are built and trained by train_at alone; set hint=0 in a loop of your "
            "own, or bring a term with layers of your own."
        )
    of_settings = default_terms(config)
    if epoch is None:
        _check_weights_are_constant(of_settings)
    if trains:
        refuse_data_parallel(student)
    runtime = Runtime(resolve_device(device))
    student.to(runtime.device)
    if teacher is not None:
        teacher.to(runtime.device)
    every = [*of_settings, *terms]
    check_terms(every, has_teacher=teacher is not None, layers=config.layers)
    for term in every:
        term.to(runtime.device)
    of_student = network_classes(student, "the student", config.class_names)
    matched = match_logits(teacher, of_student, distils=needs_of_teacher(every).logits)
    criterion = Criterion(config, NoTeacher(), runtime, every, matched, _cross_entropy(config) if trains else PLAIN)
    criterion.teacher = make_teacher(teacher, config, runtime, criterion.needs, of_student)
    return criterion, runtime


def _cross_entropy(config: Config) -> CrossEntropy:
    if config.class_weights == "auto":
        raise ConfigError(
            "class_weights is 'auto', which train_at alone can work out; give a list of numbers, in the order of the "
            "classes."
        )
    return CrossEntropy(config.label_smoothing, config.class_weights)


def _check_weights_are_constant(terms: Iterable[LossTerm]) -> None:
    changing = [term.name for term in terms if term.weight > 0 and term.needs.epoch]
    if changing:
        raise ConfigError(
            f"the weight of {changing[0]!r} changes with the epoch by these settings (dkd_warmup, or a schedule): pass "
            "epoch=..., or set them so that it does not."
        )
