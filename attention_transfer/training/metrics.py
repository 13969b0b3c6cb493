"""Running means over samples and detection of the first non-finite loss, on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attention_transfer.distributed import Runtime
from attention_transfer.errors import ConfigError, DataError, DivergenceError
from attention_transfer.evaluation import mean_recall
from attention_transfer.losses.total import Losses


def check_finite(watch: NonFiniteDetector, runtime: Runtime) -> None:
    """Raise if the loss was not finite in any process; all processes must call this.

    Raises:
        DivergenceError: names the batch and the component.
    """
    bad = next((seen for seen in runtime.all_gather_object(watch.bad_step()) if seen is not None), None)
    if bad is not None:
        raise DivergenceError(_divergence_sentence(bad))


def _divergence_sentence(bad: BadStep) -> str:
    values = ", ".join(f"{name} {value:g}" for name, value in bad.values.items())
    return (
        f"the loss is not a finite number at batch {bad.batch}: {bad.component} ({values}); lower lr or beta, or "
        "look for bad values in the images"
    )


class Means(NamedTuple):
    """The means of an epoch.

    Attributes:
        samples: images, over all processes.
        figures: means over them: loss, accuracy (fraction), balanced_accuracy if classes are counted (mean recall over
            the classes that have images), classification, and everything the loss terms report.
    """

    samples: int
    figures: dict[str, float]


class MeanMeter:
    """Running sums of losses and correct predictions over samples.

    They stay on the device as one vector (count, correct, loss, classification, what each term reports), so that only
    reading them synchronises, not adding. So do the counts per class, if any.

    Args:
        device: where the losses are.
        by_class: count each class's images and correct predictions. Checkpoints do not store these counts: they are for
            validation, which is never resumed in the middle.

    Attributes:
        names: of the sums after count, correct and loss; None before the first batch. After them comes the number of
            labelled images.
        of_labelled: those of the names that are means over labelled images alone.
    """

    def __init__(self, device: torch.device, *, by_class: bool = False) -> None:
        # float64 keeps sums of millions of samples exact enough to resume bit for bit; Apple GPUs have float32 alone
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._device = device
        self._sums: Tensor | None = None
        self.names: tuple[str, ...] | None = None
        self.of_labelled = frozenset({"classification"})
        self._counts_classes = by_class
        self._by_class: Tensor | None = None

    def add(self, losses: Losses, labels: Tensor, labelled: float | None = None) -> None:
        """Add a batch.

        Args:
            losses: with logits [B, K].
            labels: [B], on the same device; below 0 for an image without one, which accuracy does not count.
            labelled: the weight of means over labelled images alone: their number, of several processes the global
                batch's fraction of them times B; None: all images are labelled.

        Raises:
            ConfigError: the loss terms report other scalars than for the batches before.
        """
        with torch.no_grad():
            if self.names not in (None, tuple(losses.scalars)):
                raise ConfigError(
                    f"the loss terms report {', '.join(losses.scalars)} for this batch, and "
                    f"{', '.join(self.names or ())} for those before; every batch of an epoch must report the same."
                )
            self.names, self.of_labelled = tuple(losses.scalars), losses.of_labelled
            count = len(labels)
            labelled = count if labelled is None else labelled
            means = torch.stack([losses.total, *losses.scalars.values()])
            hits = losses.logits.argmax(dim=1) == labels
            correct = hits.sum()
            sums = means.to(self._dtype) * self._weights_of(count, labelled)
            new = torch.cat([self._filled(count), correct.to(self._dtype).view(1), sums, self._filled(labelled)])
            self._sums = new if self._sums is None else self._sums + new
            if self._counts_classes:
                self._add_by_class(hits, labels, losses.logits.shape[1])

    def _weights_of(self, count: int, labelled: float) -> Tensor | int:
        """What the means over a batch are multiplied by: loss, and everything by its name."""
        if labelled == count:
            return count
        weights = [labelled if name in self.of_labelled else count for name in self.names or ()]
        return torch.cat([self._filled(weight) for weight in (count, *weights)])

    def _filled(self, value: float) -> Tensor:
        """[1], on the device; a copy from the CPU would synchronise."""
        return torch.full((1,), value, dtype=self._dtype, device=self._device)

    def _add_by_class(self, hits: Tensor, labels: Tensor, num_classes: int) -> None:
        """Add the hits [B] of labels [B] to [2, K]: images and correct predictions per class."""
        if self._by_class is None:
            self._by_class = torch.zeros(2, num_classes, dtype=self._dtype, device=self._device)
        # bincount would synchronise, to find the size of its output
        is_labelled = labels >= 0
        new = torch.stack([is_labelled, hits & is_labelled]).to(self._dtype)
        self._by_class.index_add_(1, labels.clamp_min(0), new)

    def means(self, runtime: Runtime) -> Means:
        """Means over all samples of all processes; all processes must call this.

        Raises:
            DataError: no sample was added.
        """
        totals = None if self._sums is None else runtime.sum_over_processes(self._all(self._sums)).tolist()
        if totals is None or not totals[0] or self.names is None:
            raise DataError("the loader gave no batch; it must give at least one.")
        by_class = [] if self._by_class is None else totals[-self._by_class.numel() :]
        count, correct, loss, *sums, labelled = totals[: len(totals) - len(by_class)]
        labelled = max(labelled, 1.0)  # of no image nothing is right
        figures = {"loss": loss / count, "accuracy": correct / labelled}
        if by_class:
            figures["balanced_accuracy"] = mean_recall(*_halves(by_class))
        for name, value in zip(self.names, sums, strict=True):
            figures[name] = value / (labelled if name in self.of_labelled else count)
        return Means(int(count), figures)

    def _all(self, sums: Tensor) -> Tensor:
        """All sums as one vector, so that processes communicate once."""
        return sums if self._by_class is None else torch.cat([sums, self._by_class.flatten()])

    @property
    def count(self) -> int:
        """Samples that this process has added."""
        return 0 if self._sums is None else int(self._sums[0])

    def over_processes(self, runtime: Runtime) -> Tensor | None:
        """The sums [S] over all processes, on the CPU, for a checkpoint; all processes must call this."""
        return None if self._sums is None else runtime.sum_over_processes(self._sums).cpu()

    def load_state(
        self,
        sums: Tensor | None,
        names: Sequence[str] | None = None,
        of_labelled: Sequence[str] = ("classification",),
    ) -> None:
        """Restore the sums of a checkpoint.

        Args:
            sums: [S], see `over_processes`; or None.
            names: of the sums after count, correct and loss; None for a checkpoint of version 0.1, which had two terms.
            of_labelled: those of them that are means over labelled images alone.
        """
        self._sums = None if sums is None else sums.to(self._device)
        if self._sums is not None:
            stages = (f"attention_stage_{i}" for i in range(len(self._sums) - 6))
            self.names = ("classification", "kd", "attention", *stages) if names is None else tuple(names)
            self.of_labelled = frozenset(of_labelled)
            if len(self._sums) == 3 + len(self.names):
                # of a checkpoint that knows no images without labels
                self._sums = torch.cat([self._sums, self._sums[:1]])


def _halves(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    return values[: len(values) // 2], values[len(values) // 2 :]


class BadStep(NamedTuple):
    """The first step whose loss was not a finite number."""

    batch: int
    component: str
    values: dict[str, float]


class NonFiniteDetector:
    """Detects the first batch with a non-finite total; state is kept on the device, so that it does not synchronise.

    Args:
        device: where the losses are.
        weights: of the loss terms, by name; a term of weight 0 is no part of the total, and so is never blamed.
    """

    def __init__(self, device: torch.device, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._first = torch.full((), -1, dtype=torch.int64, device=device)
        self._names: tuple[str, ...] = ()
        self._values: Tensor | None = None

    def update(self, losses: Losses, batch: int) -> None:
        """Check the losses of one batch."""
        with torch.no_grad():
            self._names = tuple(losses.scalars)
            values = torch.stack([losses.total, *losses.scalars.values()]).float()
            is_first_bad = (self._first < 0) & ~losses.total.isfinite()
            self._first = torch.where(is_first_bad, batch, self._first)
            self._values = values if self._values is None else torch.where(is_first_bad, values, self._values)

    def bad_step(self) -> BadStep | None:
        """The first bad batch, or None; synchronises with the device."""
        if self._values is None or int(self._first) < 0:
            return None
        values: dict[str, float] = dict(zip(("total", *self._names), self._values.tolist(), strict=True))
        # a sum of parts is named by the part that is bad
        parts = [name for name in values if not any(other.startswith(f"{name}_") for other in values)]
        to_blame = [name for name in parts if name != "total" and self._weight_of(name) > 0]
        bad = [name for name in to_blame if not math.isfinite(values[name])]
        return BadStep(int(self._first), bad[0] if bad else "total", {name: values[name] for name in parts})

    def _weight_of(self, name: str) -> float:
        if name == "classification":
            return 1.0
        terms = [term for term in self._weights if name == term or name.startswith(f"{term}_")]
        return self._weights[max(terms, key=len)] if terms else 0.0
