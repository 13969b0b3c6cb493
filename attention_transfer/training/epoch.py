"""One pass over a loader: training, or measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attention_transfer.config import Config, resolve_config
from attention_transfer.data.batches import Batch
from attention_transfer.data.sampler import EpochBatchSampler
from attention_transfer.data.user_loaders import unpack
from attention_transfer.devices import resolve_device
from attention_transfer.distributed import Runtime
from attention_transfer.logs import log_once
from attention_transfer.modules import undisturbed, unwrapped
from attention_transfer.teacher.build import make_teacher
from attention_transfer.training.criterion import Criterion, Losses
from attention_transfer.training.epoch_progress import EpochProgress
from attention_transfer.training.metrics import MeanMeter, Means, NonFiniteDetector, check_finite

STEPS_BETWEEN_CHECKS = 20

OnBatch = Callable[[EpochProgress], None]


class LocalBatch(NamedTuple):
    """What one process has of a global batch.

    Attributes:
        batch: on the process's device; may be empty.
        global_size: images of the whole batch, over all processes.
        labels: the labels as they came, usually on the CPU, where looking at them waits for nothing.
    """

    batch: Batch
    global_size: int
    labels: Tensor


def local_batches(loader: Iterable[Any], runtime: Runtime) -> Iterator[LocalBatch]:
    """This process's share of every batch of a loader; batches without images are passed over.

    Loaders of ours that were made for these processes are cut into shares by their sampler; of any other, every
    process reads all and keeps its part.
    """
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, EpochBatchSampler) and sampler.world_size == runtime.world_size:
        sizes = sampler.global_sizes()[sampler.start_batch :]
        for batch, size in zip(loader, sizes, strict=True):
            yield LocalBatch(_arrived(batch, runtime), size, batch.labels)
        return
    for raw in loader:
        batch = unpack(raw)
        mine = slice(runtime.rank, None, runtime.world_size)
        part = Batch(batch.images[mine], batch.labels[mine])
        if len(batch.labels):
            yield LocalBatch(_arrived(part, runtime), len(batch.labels), part.labels)


def _arrived(batch: Batch, runtime: Runtime) -> Batch:
    batch = batch.to(runtime.device, non_blocking=True)
    return replace(batch, images=batch.images.contiguous(memory_format=runtime.memory_format))


def run_training_epoch(
    criterion: Criterion,
    student: nn.Module,
    loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    on_batch: OnBatch | None = None,
    position: EpochProgress | None = None,
) -> Means:
    """One epoch of training, or the rest of one; see `train_epoch`.

    Args:
        objective: the loss.
        student: trained in place.
        loader: of the whole epoch, or set to the batch after those that are done.
        optimizer: over the student's parameters.
        runtime: device, number format, processes.
        on_batch: called after each batch.
        position: of an epoch that was begun already.

    Raises:
        DivergenceError: a loss was not a finite number.
        DataError: the loader was empty.
    """
    student.train()
    position = position or EpochProgress(runtime, criterion.config)
    for share in local_batches(loader, runtime):
        optimizer.zero_grad(set_to_none=True)
        losses = _train_step(criterion, student, share, optimizer, runtime)
        position.watch.update(losses, position.batches)
        position.sums.add(losses, share.batch.labels)
        if position.batches % STEPS_BETWEEN_CHECKS == 0:
            position.check()
        position.batches += 1
        position.images += share.global_size
        if on_batch is not None:
            on_batch(position)
    position.check()
    return position.sums.means(runtime)


def _train_step(
    criterion: Criterion,
    student: nn.Module,
    share: LocalBatch,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
) -> Losses:
    size = len(share.labels)
    batch = share.batch if size else _stand_in(share.batch)
    with _batch_norm_by_size(student, len(batch.labels)):
        losses = criterion(student, batch, share.labels)
    # Gradients are averaged over processes, so that a share weighs as much as it has of the global batch.
    weight = size * runtime.world_size / share.global_size
    runtime.step(losses.total if weight == 1 else losses.total * weight, optimizer)
    return losses if size else _nothing(losses)


def _stand_in(batch: Batch) -> Batch:
    """One black image in place of an empty share: every process must take part in averaging gradients."""
    images = batch.images.new_zeros((1, *batch.images.shape[1:]))
    return Batch(images, batch.labels.new_zeros(1))


def _nothing(losses: Losses) -> Losses:
    """The losses of a stand-in as they count: not at all."""
    zero = torch.zeros_like(losses.total)
    return Losses(zero, zero, zero, zero, tuple(zero for _ in losses.per_stage), losses.logits[:0])


@contextmanager
def _batch_norm_by_size(student: nn.Module, size: int) -> Iterator[None]:
    """A batch of one has no variance: batch normalisation then uses its running statistics."""
    norms = [module for module in student.modules() if isinstance(module, _BatchNorm) and module.training]
    if size > 1 or not norms:
        yield
        return
    log_once("a batch has a single image: for it, batch normalisation uses its running statistics")
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def run_validation_epoch(
    criterion: Criterion,
    student: nn.Module,
    loader: Iterable[Any],
    runtime: Runtime,
    on_batch: Callable[[int], None] | None = None,
) -> Means:
    """One pass of measuring, which tells `on_batch` how many batches are done; see `validate`."""
    sums, watch = MeanMeter(runtime.device), NonFiniteDetector(runtime.device, criterion.config)
    network = unwrapped(student)
    with undisturbed(network):
        for step, share in enumerate(local_batches(loader, runtime)):
            batch = share.batch if len(share.labels) else _stand_in(share.batch)
            losses = criterion(network, batch, share.labels)
            losses = losses if len(share.labels) else _nothing(losses)
            watch.update(losses, step)
            sums.add(losses, share.batch.labels)
            if on_batch is not None:
                on_batch(step + 1)
    check_finite(watch, runtime)
    return sums.means(runtime)


def train_epoch(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    train_loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    device: str | torch.device = "auto",
    config: Config | Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Train for one pass over a loader.

    A loop of one's own around this function gets a fresh order and fresh augmentation in each pass, as our
    loaders advance by themselves.

    Args:
        student_model: trained in place, in train mode.
        teacher_model: compared with, left as it is; None trains by cross-entropy alone.
        train_loader: any iterable of (images, labels).
        optimizer: over the student's parameters.
        device: where to compute; the networks are moved there.
        config: alpha, beta, temperature and layers are used.

    Returns:
        means over samples: loss, accuracy (fraction), classification, kd, attention, attention_stage_i.

    Raises:
        DivergenceError: a loss was not a finite number; names the batch and the component.
        DataError: the loader was empty, or a label out of range.
    """
    criterion, runtime = _set_up(student_model, teacher_model, device, config)
    return run_training_epoch(criterion, student_model, train_loader, optimizer, runtime).figures


def validate(
    student_model: nn.Module,
    teacher_model: nn.Module | None,
    val_loader: Iterable[Any],
    device: str | torch.device = "auto",
    config: Config | Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Measure a student on a loader: eval mode, no gradients, everything left as it was found.

    Returns:
        means over samples: loss, accuracy (fraction), classification, kd, attention, attention_stage_i.

    Raises:
        DataError: the loader was empty, or a label out of range.
    """
    criterion, runtime = _set_up(student_model, teacher_model, device, config)
    return run_validation_epoch(criterion, student_model, val_loader, runtime).figures


def _set_up(
    student: nn.Module,
    teacher: nn.Module | None,
    device: str | torch.device,
    config: Config | Mapping[str, Any] | None,
) -> tuple[Criterion, Runtime]:
    config = resolve_config(config)
    runtime = Runtime(resolve_device(device))
    student.to(runtime.device)
    if teacher is not None:
        teacher.to(runtime.device)
    return Criterion(config, make_teacher(teacher, config, runtime), runtime), runtime
