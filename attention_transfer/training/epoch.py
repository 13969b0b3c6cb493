"""One epoch over a loader: training or validation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.loaders import own_sampler
from attention_transfer.data.loading.user_loaders import Received, check_labels, warn_of_unusual_values
from attention_transfer.distributed import Runtime
from attention_transfer.logs import log_once
from attention_transfer.losses.labels import Labelled
from attention_transfer.losses.total import Losses
from attention_transfer.modules import undisturbed, unwrapped
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.epoch_progress import EpochProgress
from attention_transfer.training.metrics import MeanMeter, Means, NonFiniteDetector, check_finite
from attention_transfer.training.optim.updates import UpdateRule, Updates

STEPS_BETWEEN_CHECKS = 20

OnBatch = Callable[[EpochProgress], None]


class LocalBatch(NamedTuple):
    """One process's share of a global batch.

    Attributes:
        batch: on the process's device; may be empty.
        global_size: images in the global batch.
        num_labelled: images in the batch that have a label; None where labels came on a GPU.
        global_labelled: images in the global batch that have one; likewise.
        emphasis: a factor [] of the cross-entropy, see `Criterion.emphases`; None: 1.
    """

    batch: Batch
    global_size: int
    num_labelled: int | None
    global_labelled: int | None
    emphasis: Tensor | None = None

    @property
    def size(self) -> int:
        """Images in the batch."""
        return len(self.batch.labels)

    @property
    def labelled(self) -> Labelled:
        """How many images have a label."""
        if self.num_labelled is None or not self.global_labelled or not self.size:
            return Labelled(self.num_labelled, self.size)
        share = self.num_labelled * self.global_size / (self.size * self.global_labelled)
        return Labelled(self.num_labelled, self.size, share)

    @property
    def weight_of_labelled(self) -> float | None:
        """The weight of means over labelled images; None where all have a label, or it is unknown."""
        if self.global_labelled is None or self.global_labelled == self.global_size:
            return None
        return self.size * self.global_labelled / self.global_size


def local_batches(
    loader: Iterable[Any], runtime: Runtime, criterion: Criterion, group: int = 1
) -> Iterator[LocalBatch]:
    """This process's share of every batch of a loader; batches without images are skipped.

    Loaders of ours that were made for these processes are sharded by their sampler; of any other, every process reads
    all batches and takes its share. Labels are checked before they go to the device, where a check would synchronise.

    Args:
        loader: over the batches of all processes.
        runtime: gives device, memory format and processes.
        criterion: has the number of classes, once the student has run.
        group: batches that make one step; with class weights they are read ahead, as their weights belong together.

    Raises:
        DataError: a label is not one of the student's classes.
    """
    shares = _shares(loader, runtime)
    if group > 1 and criterion.weighs_classes:
        shares = _emphasised(shares, criterion, group)
    # closed with this generator: an error that is kept holds its frame, and the loader's workers with it
    with closing(shares):
        for local in shares:
            yield local._replace(batch=_arrived(local.batch, runtime, criterion))


def _emphasised(
    shares: Generator[LocalBatch, None, None], criterion: Criterion, group: int
) -> Generator[LocalBatch, None, None]:
    with closing(shares):
        while step := list(itertools.islice(shares, group)):
            for local, emphasis in zip(step, criterion.emphases([each.batch for each in step]), strict=True):
                yield local._replace(emphasis=emphasis)


def _shares(loader: Iterable[Any], runtime: Runtime) -> Generator[LocalBatch, None, None]:
    """This process's share of every batch, where the loader has put it."""
    sampler = own_sampler(loader, runtime.world_size)
    if sampler is not None:
        sizes = zip(sampler.global_sizes(), sampler.labelled_sizes(), strict=True)
        rest = itertools.islice(sizes, sampler.start_batch, None)
        for batch, (size, labelled) in zip(Received(loader), rest, strict=True):
            yield LocalBatch(batch, size, _count(batch), labelled)
        return
    for number, batch in enumerate(Received(loader)):
        if number == 0 and runtime.is_main and batch.indices is None:
            warn_of_unusual_values(batch.images)
        mine = slice(runtime.rank, None, runtime.world_size)
        part = batch.part(mine)
        if len(batch.labels):
            yield LocalBatch(part, len(batch.labels), _count(part), _count(batch))


def _count(batch: Batch) -> int | None:
    count = Labelled.of(batch.labels).count
    if count == 0 and len(batch.labels):
        log_once("a batch has no labelled image: its cross-entropy is 0")
    return count


def _arrived(batch: Batch, runtime: Runtime, criterion: Criterion) -> Batch:
    if criterion.num_classes is not None:
        check_labels(batch.labels, criterion.num_classes)
    batch = batch.to(runtime.device, non_blocking=True)
    return replace(batch, images=batch.images.contiguous(memory_format=runtime.memory_format))


def run_training_epoch(
    criterion: Criterion,
    student: nn.Module,
    loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    on_batch: OnBatch | None = None,
    progress: EpochProgress | None = None,
    frozen: Iterable[nn.Module] = (),
    rule: UpdateRule | None = None,
) -> Means:
    """One epoch of training, or the rest of one; see `train_epoch`.

    Args:
        criterion: the loss.
        student: trained in place.
        loader: of the whole epoch, or starting after the batches that are done.
        optimizer: over the student's parameters.
        runtime: gives device, number format and processes.
        on_batch: called after each batch.
        progress: of a resumed epoch; None for a new one.
        frozen: modules of the student that stay in eval mode.
        rule: how gradients become steps of the optimizer; None: each batch is a step.

    Returns:
        means over all samples of the epoch, of all processes.

    Raises:
        DivergenceError: a loss was not a finite number.
        DataError: the loader was empty.
    """
    student.train()
    for module in frozen:
        module.eval()
    criterion.modules.train()
    progress = progress or EpochProgress(runtime, criterion.weights)
    rule = rule or UpdateRule()
    updates = Updates(optimizer, runtime, rule, student, criterion.parameters())
    for local in local_batches(loader, runtime, criterion, rule.accumulate):
        with updates.batch(local.global_size, is_last=progress.is_at_last_batch) as share:
            losses = _compute_gradients(criterion, student, local, runtime, progress.epochs, share)
        progress.waiting = updates.waiting
        progress.detector.update(losses, progress.batches)
        progress.meter.add(losses, local.batch.labels, local.weight_of_labelled)
        if progress.batches % STEPS_BETWEEN_CHECKS == 0:
            progress.check()
        progress.batches += 1
        progress.images += local.global_size
        if on_batch is not None:
            on_batch(progress)
    updates.finish()
    progress.waiting = updates.waiting
    progress.check()
    return progress.meter.means(runtime)


def _compute_gradients(
    criterion: Criterion, student: nn.Module, local: LocalBatch, runtime: Runtime, epoch: float, share: float
) -> Losses:
    """The losses of a batch, whose gradients are added to those of the parameters, times the share."""
    size = len(local.batch.labels)
    batch = local.batch if size else _stand_in(local.batch)
    smallest = local.global_size // runtime.world_size
    if smallest <= 1 < runtime.world_size:
        # some process is about to read its running statistics
        runtime.align_buffers(unwrapped(student))
    with _batch_norm_by_size([student, criterion.modules], len(batch.labels), smallest):
        labelled = local.labelled if size else None
        losses = criterion(student, batch, epoch, is_stand_in=not size, labelled=labelled, emphasis=local.emphasis)
    # gradients are averaged over processes: each is weighted by its share of the global batch
    weight = size * runtime.world_size / local.global_size * share
    runtime.backward(losses.total if weight == 1 else losses.total * weight)
    return losses if size else losses.as_nothing()


def _stand_in(batch: Batch) -> Batch:
    """One image of zeros in place of an empty share: every process must take part in averaging gradients."""
    images = batch.images.new_zeros((1, *batch.images.shape[1:]))
    return Batch(images, batch.labels.new_zeros(1))


@contextmanager
def _batch_norm_by_size(networks: Iterable[nn.Module], size: int, smallest: int) -> Iterator[None]:
    """Make batch normalisation use its running statistics for a batch of one, which has no variance.

    SyncBatchNorm, whose processes wait for each other, does so in all of them or in none.

    Args:
        networks: with the modules.
        size: images of this process, at least one of which may be a stand-in.
        smallest: images of the process that has the fewest, without stand-ins.
    """
    modules = itertools.chain.from_iterable(network.modules() for network in networks)
    norms = [
        module
        for module in modules
        if isinstance(module, _BatchNorm)
        and module.training
        and (smallest if isinstance(module, nn.SyncBatchNorm) else size) <= 1
    ]
    if not norms:
        yield
        return
    if any(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        log_once(
            "a process has a single image of a batch, or none: for that batch, SyncBatchNorm uses its running "
            "statistics in all processes"
        )
    else:
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
    epoch: float = 0.0,
) -> Means:
    """One epoch of validation: eval mode, no gradients; see `validate`.

    Args:
        criterion: the loss.
        student: left unchanged.
        loader: over the batches of all processes.
        runtime: gives device, number format and processes.
        on_batch: called after each batch with the number of batches done.
        epoch: epochs trained so far, for terms that need it.

    Returns:
        means over all samples, of all processes.

    Raises:
        DivergenceError: a loss was not a finite number.
        DataError: the loader was empty.
    """
    meter, detector = MeanMeter(runtime.device, by_class=True), NonFiniteDetector(runtime.device, criterion.weights)
    network = unwrapped(student)
    with undisturbed(network), undisturbed(criterion.modules):
        for step, local in enumerate(local_batches(loader, runtime, criterion)):
            is_empty = not len(local.batch.labels)
            batch, labelled = (_stand_in(local.batch), None) if is_empty else (local.batch, local.labelled)
            losses = criterion(network, batch, epoch, labelled=labelled)
            losses = losses.as_nothing() if is_empty else losses
            detector.update(losses, step)
            meter.add(losses, local.batch.labels, local.weight_of_labelled)
            if on_batch is not None:
                on_batch(step + 1)
    check_finite(detector, runtime)
    return meter.means(runtime)
