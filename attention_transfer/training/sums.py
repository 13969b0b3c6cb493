"""Means over samples, kept as sums on the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attention_transfer.errors import DataError
from attention_transfer.training.objective import Losses
from attention_transfer.training.runtime import Runtime


class Means(NamedTuple):
    """What an epoch came to.

    Attributes:
        samples: how many images were seen, over all processes.
        figures: means over them: loss, accuracy (fraction), classification, kd, attention, attention_stage_i.
    """

    samples: int
    figures: dict[str, float]


COMPONENTS = ("loss", "classification", "kd", "attention")


class Sums:
    """Running sums of losses and correct answers over samples.

    They stay on the device as one vector (count, correct, loss, classification, kd, attention, each stage), so
    that a step waits for nothing; reading them is what waits.
    """

    def __init__(self, device: torch.device) -> None:
        # float64 keeps sums of millions of samples exact enough to resume bit for bit; Apple GPUs have float32 alone
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._device = device
        self._sums: Tensor | None = None

    def add(self, losses: Losses, labels: Tensor) -> None:
        """Add a batch."""
        with torch.no_grad():
            count = len(labels)
            means = torch.stack([losses.total, losses.classification, losses.kd, losses.attention, *losses.per_stage])
            correct = (losses.logits.argmax(dim=1) == labels).sum()
            counts = torch.stack([correct.new_tensor(count), correct])
            new = torch.cat([counts.to(self._dtype), means.to(self._dtype) * count])
            self._sums = new if self._sums is None else self._sums + new

    def means(self, runtime: Runtime) -> Means:
        """Means over all samples of all processes; every process must call this together.

        Raises:
            DataError: no sample was added.
        """
        totals = None if self._sums is None else runtime.sum_over_processes(self._sums).tolist()
        if totals is None or not totals[0]:
            raise DataError("the loader gave no batch; it must give at least one.")
        count, correct, *sums = totals
        means = [value / count for value in sums]
        stages = {f"attention_stage_{i}": value for i, value in enumerate(means[len(COMPONENTS) :])}
        figures = {
            "loss": means[0],
            "accuracy": correct / count,
            **dict(zip(COMPONENTS, means, strict=False)),
            **stages,
        }
        return Means(int(count), figures)

    @property
    def count(self) -> int:
        """Samples that this process has added."""
        return 0 if self._sums is None else int(self._sums[0])

    def over_processes(self, runtime: Runtime) -> Tensor | None:
        """The sums of all processes, on the CPU, for a checkpoint; every process must call this together."""
        return None if self._sums is None else runtime.sum_over_processes(self._sums).cpu()

    def load_state(self, sums: Tensor | None) -> None:
        """Go on from the sums of a checkpoint."""
        self._sums = None if sums is None else sums.to(self._device)
