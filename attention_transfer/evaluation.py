"""Evaluation of a classifier: accuracy, calibration, and cost."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from attention_transfer.class_names import Classes, Match, match
from attention_transfer.config import Config, resolve_config
from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.loaders import own_sampler
from attention_transfer.data.loading.relabelled import Relabelled
from attention_transfer.data.loading.user_loaders import (
    Received,
    check_labels,
    classes_of,
    labelled_part,
    warn_of_unusual_values,
)
from attention_transfer.distributed import Runtime
from attention_transfer.errors import DataError, DivergenceError
from attention_transfer.modules import count_logits, device_of, like_weights, undisturbed, unwrapped
from attention_transfer.networks.class_lists import network_classes
from attention_transfer.networks.input_shapes import refusing_misfits
from attention_transfer.progress import progress_bar

logger = logging.getLogger(__name__)

CALIBRATION_BINS = 15


def evaluate_model(
    model: nn.Module, test_loader: Iterable[Any], config: Config | Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Evaluate a classifier on a test set.

    The network runs in eval mode, in its own number format and on its own device, and is left unchanged.

    Args:
        model: maps images [B, C, H, W] to logits [B, K], K at least 2.
        test_loader: any iterable of (images [B, C, H, W], labels [B]); images with label -100 are left out.
        config: uses class_names: the network's classes; by default those that it was trained with. If the loader's
            data set has class names too, both are matched by name: the data may have them in another order, and may
            have few of them. A network without names gets those of the data, in their order; without any, classes are
            called '0', '1', ...

    Returns:
        plain numbers, lists and dicts that can be written as JSON:
        accuracy, balanced_accuracy (the mean of recall over the classes that have images; 1 / K for a constant
        prediction), top5_accuracy (all in [0, 1]; the top K where K is below 5), loss (mean cross-entropy),
        per_class (precision, recall, f1 and support by class name; 0 where undefined),
        confusion_matrix (K lists of K counts: a row for each true class, a column for each predicted one),
        calibration_error (expected calibration error of 15 bins, in [0, 1]; Guo et al. 2017, equation 3),
        parameters, multiply_adds (of convolutions and matrix products, for one image at the loader's size),
        images_per_second (forward passes alone, the first batch left out as a warm-up if there are more), samples.

    Raises:
        DataError: the loader is empty, a label is not among the network's classes, or the data have a class that the
            network does not have.
        ConfigError: the network does not output logits [B, K], K at least 2.
        DivergenceError: the loss of a batch is not a finite number.

    Example:
        >>> from attention_transfer import create_model
        >>> batches = [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 1, 0]))]
        >>> report = evaluate_model(create_model("CifarResNet-20", 2), batches)
        >>> report["samples"], report["multiply_adds"]
        (4, 40550528)
    """
    return evaluate_shared(model, test_loader, resolve_config(config), Runtime(device_of(model)))


def evaluate_shared(model: nn.Module, test_loader: Iterable[Any], config: Config, runtime: Runtime) -> dict[str, Any]:
    """As `evaluate_model`, by all processes of a run: each runs the network on every n-th batch.

    The main process adds up the logits of all in the loader's order, so that its figures are those of one process.

    Args:
        model: the same in every process.
        test_loader: the same in every process, over all images; or each process's share, of `prepare_dataloaders`.
        config: as for `evaluate_model`.
        runtime: gives the processes, all of which must call this; they raise the same errors.
    """
    network, answers = network_classes(model, "the network", config.class_names), _Answers(model, runtime)
    names, test_loader = _in_networks_numbers(network, test_loader)
    tally: Tally | None = None
    with undisturbed(model):
        for logits, labels in _of_all(answers.to(test_loader), runtime):
            if tally is None:
                _check_count(network, names, count_logits(logits))
                tally = Tally(names, count_logits(logits))
            tally.add(logits, labels)
        if tally is None:
            raise DataError("test_loader gave no image; it must give at least one batch of them.")
        cost = answers.cost()
    report = tally.report()
    return {**report, "parameters": sum(parameter.numel() for parameter in unwrapped(model).parameters()), **cost}


Answer = tuple[Tensor, Tensor]
"""The logits [B, K] of a batch, float32, and its labels [B], both on the CPU."""


class _Answers:
    """A network's answers to this process's share of a loader, and what they cost.

    Args:
        model: in eval mode.
        runtime: gives the processes.
    """

    def __init__(self, model: nn.Module, runtime: Runtime) -> None:
        self._model = model
        self._runtime = runtime
        self._clock = Stopwatch(runtime.device)
        self._image: Tensor | None = None

    def to(self, loader: Iterable[Any]) -> Iterator[Answer]:
        """The answers to every n-th batch of a loader, or to each batch of one that is split over processes already.

        Batches without labels have none, but take their turn.
        """
        sampler = own_sampler(loader)
        is_split = sampler is not None and sampler.world_size > 1
        share = (0, 1) if is_split else (self._runtime.rank, self._runtime.world_size)
        with nullcontext() if sampler is None else sampler.every_nth_batch(*share):
            batches: Iterable[Batch] = Received(loader)
            if self._runtime.is_main:
                batches = progress_bar(batches, desc="evaluating", unit="batch")
            if sampler is None:
                batches = itertools.islice(batches, share[0], None, share[1])
            for batch in map(labelled_part, batches):
                yield self._answer(batch)

    def _answer(self, batch: Batch) -> Answer:
        if not len(batch.labels):
            return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
        images = like_weights(batch.images.to(self._clock.device), self._model)
        if self._image is None and batch.indices is None:
            warn_of_unusual_values(batch.images)
        self._image = images[:1]
        with refusing_misfits(self._model, images, "network"), self._clock.timing(len(images)):
            logits = self._model(images)
        count_logits(logits)
        return logits.cpu().float(), batch.labels.cpu()

    def cost(self) -> dict[str, Any]:
        """multiply_adds and images_per_second, of this process; nothing if it had no image."""
        if self._image is None:
            return {}
        multiply_adds = count_multiply_adds(self._model, self._image)
        return {"multiply_adds": multiply_adds, "images_per_second": self._clock.images_per_second()}


def _of_all(answers: Iterator[Answer], runtime: Runtime) -> Iterator[Answer]:
    """The answers of all processes that are not empty, in the loader's order; an error of one is raised in all."""
    if runtime.world_size == 1:
        yield from (answer for answer in answers if len(answer[1]))
        return
    while True:
        try:
            mine: Answer | Exception | None = next(answers, None)
        except Exception as error:
            mine = error
        everyone: list[Answer | Exception | None] = runtime.all_gather_object(mine)
        for each in everyone:
            if isinstance(each, Exception):
                raise each
            if each is not None and len(each[1]):
                yield each
        if all(each is None for each in everyone):
            return


class Tally:
    """The running counts of an evaluation, on the CPU; logits are not stored.

    Args:
        names: of the classes; further classes are named by their numbers.
        num_classes: K, at least 2.
    """

    def __init__(self, names: Sequence[str], num_classes: int) -> None:
        from torchmetrics import MetricCollection
        from torchmetrics import classification as metrics

        self.num_classes = num_classes
        self._names = [names[label] if label < len(names) else str(label) for label in range(num_classes)]
        # `add` validates already; of several processes only one evaluates, so that syncing would wait for ever
        common: dict[str, Any] = {"num_classes": num_classes, "validate_args": False, "sync_on_compute": False}
        self._of_logits = MetricCollection(
            {
                "accuracy": metrics.MulticlassAccuracy(average="micro", **common),
                "top5_accuracy": metrics.MulticlassAccuracy(average="micro", top_k=min(5, num_classes), **common),
                "precision": metrics.MulticlassPrecision(average=None, **common),
                "recall": metrics.MulticlassRecall(average=None, **common),
                "f1": metrics.MulticlassF1Score(average=None, **common),
                "confusion_matrix": metrics.MulticlassConfusionMatrix(**common),
            }
        )
        self._calibration = metrics.MulticlassCalibrationError(n_bins=CALIBRATION_BINS, norm="l1", **common)
        self._loss = 0.0
        self._samples = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: float32 logits [B, K] and labels [B], both on the CPU.

        Raises:
            DataError: a label below 0 or above K - 1.
            DivergenceError: the loss is not a finite number.
        """
        check_labels(labels, self.num_classes)
        loss = float(F.cross_entropy(logits, labels, reduction="sum"))
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss is {loss} after {self._samples} good images; look for bad values in the images that "
                "follow, or in the network's weights."
            )
        self._loss += loss
        self._samples += len(labels)
        self._of_logits.update(logits, labels)
        # torchmetrics takes logits that all happen to lie in [0, 1] for probabilities
        self._calibration.update(logits.softmax(dim=1), labels)

    def report(self) -> dict[str, Any]:
        """The figures of all samples added; there must be at least one."""
        values = {name: _plain(value) for name, value in self._of_logits.compute().items()}
        confusion = values["confusion_matrix"]
        columns = (values["precision"], values["recall"], values["f1"], [sum(row) for row in confusion])
        rows = zip(*columns, strict=True)
        return {
            "accuracy": values["accuracy"],
            "balanced_accuracy": mean_recall(columns[3], [row[label] for label, row in enumerate(confusion)]),
            "top5_accuracy": values["top5_accuracy"],
            "loss": self._loss / self._samples,
            "per_class": {
                name: dict(zip(("precision", "recall", "f1", "support"), row, strict=True))
                for name, row in zip(self._names, rows, strict=True)
            },
            "confusion_matrix": confusion,
            "calibration_error": _plain(self._calibration.compute()),
            "samples": self._samples,
        }


def mean_recall(images: Sequence[float], right: Sequence[float]) -> float:
    """Balanced accuracy: the mean of recall over the classes that have images (Brodersen et al. 2010), in [0, 1].

    Args:
        images: number of images of each of K classes; not all 0.
        right: number of them classified correctly.

    Example:
        >>> mean_recall([180, 6, 0], [180, 0, 0])
        0.5
    """
    recalls = [hits / count for count, hits in zip(images, right, strict=True) if count]
    return sum(recalls) / len(recalls)


def _plain(figures: Tensor) -> Any:
    # torchmetrics divides in float32, whose seven digits read as 0.8949999809265137 when all are written
    return figures.double().round(decimals=7).tolist() if figures.is_floating_point() else figures.tolist()


class Stopwatch:
    """A timer of forward passes on a device; the time between them does not count."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._passes: list[tuple[int, float]] = []

    @contextmanager
    def timing(self, images: int) -> Iterator[None]:
        """Time the `with` block as one pass over `images` images."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self._passes.append((images, time.perf_counter() - start))

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def images_per_second(self) -> float:
        """The rate over all passes but the first, which warms up; of the first if it is the only one."""
        passes = self._passes[1:] or self._passes
        return sum(images for images, _ in passes) / sum(seconds for _, seconds in passes)


def count_multiply_adds(model: nn.Module, images: Tensor) -> int:
    """The multiply-adds of convolutions and matrix products in one forward pass.

    Args:
        model: run once, without its wrappers, which hide operations from the counter.
        images: [B, C, H, W] on the network's device.
    """
    with undisturbed(model), FlopCounterMode(display=False) as counter:
        unwrapped(model)(images)
    multiply_adds: int = counter.get_total_flops() // 2
    return multiply_adds


def _in_networks_numbers(network: Classes, loader: Iterable[Any]) -> tuple[tuple[str, ...], Iterable[Any]]:
    """The class names, and the loader relabelled with the network's class numbers if it has names."""
    in_loader = classes_of(loader)
    if in_loader is None:
        return network.names or (), loader
    found = _matched(network, in_loader)
    if found.note is not None:
        logger.info("%s", found.note)
    names = network.names or in_loader
    return names, loader if found.positions is None else Relabelled(loader, found.positions, names, "the loader")


def _check_count(network: Classes, names: Sequence[str], num_classes: int) -> None:
    """Check the data's class names against the width of a network of unknown width."""
    if network.number is None and names:
        _matched(Classes(network.owner, count=num_classes), names)


def _matched(network: Classes, data: Sequence[str]) -> Match:
    try:
        return match(network, Classes("the data set", tuple(data)))
    except DataError as error:
        raise DataError(
            f"{error}; call the classes of the data as the network does, or measure a network that was trained on them."
        ) from None
