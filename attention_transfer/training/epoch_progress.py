"""The progress of a training epoch: one object, which the checkpoint of an unfinished epoch saves and restores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from attention_transfer.distributed import Runtime
from attention_transfer.training.metrics import MeanMeter, NonFiniteDetector, check_finite


class ProgressState(TypedDict):
    """The progress of an unfinished epoch, as a checkpoint stores it.

    Attributes:
        batches: completed batches.
        images: completed images, over all processes.
        sums: of losses and correct predictions, over all processes; see `MeanMeter`.
        names: of the sums; absent in checkpoints of version 0.1.
        of_labelled: those of the names that are means over labelled images alone; likewise.
        seconds: time spent on the epoch so far.
        lr: the learning rate at the start of the epoch; absent in checkpoints of version 0.1.
    """

    batches: int
    images: int
    sums: Tensor | None
    names: NotRequired[list[str] | None]
    of_labelled: NotRequired[list[str]]
    seconds: float
    lr: NotRequired[float | None]


def as_progress(state: Mapping[str, Any]) -> ProgressState:
    """A checkpoint's entry for an unfinished epoch as a `ProgressState`.

    Raises:
        KeyError: an entry is missing.
    """
    return {
        "batches": state["batches"],
        "images": state["images"],
        "sums": state["sums"],
        "names": state.get("names"),
        "of_labelled": state.get("of_labelled", ["classification"]),
        "seconds": state["seconds"],
        "lr": state.get("lr"),
    }


class EpochProgress:
    """The progress of a training epoch: batches and images done, running sums, time.

    Args:
        runtime: gives device and processes.
        weights: of the loss terms, by name; a term of weight 0 is never blamed for a non-finite loss.
        epoch: its number, from 0.
        length: batches in it; None for a loader of unknown length.
        lr: the learning rate at its start; a resumed epoch's is the restored one.

    Attributes:
        batches: completed batches.
        images: completed images, over all processes.
        meter: sums of this process.
        detector: detects a non-finite loss.
        waiting: completed batches whose gradients wait for the optimizer's step; the epoch can pause where it is 0.
    """

    def __init__(
        self,
        runtime: Runtime,
        weights: Mapping[str, float],
        epoch: int = 0,
        length: int | None = None,
        lr: float = 0.0,
    ) -> None:
        self.epoch = epoch
        self.length = length
        self.batches = self.images = self.waiting = 0
        self.lr = lr
        self.meter = MeanMeter(runtime.device)
        self.detector = NonFiniteDetector(runtime.device, weights)
        self._runtime = runtime
        self._began = time.perf_counter()

    @property
    def epochs(self) -> float:
        """Completed epochs, including the fraction of this one."""
        return self.epoch + (self.batches / self.length if self.length else 0.0)

    @property
    def is_at_last_batch(self) -> bool:
        """Whether the next batch is known to be the last of the epoch."""
        return self.length is not None and self.batches + 1 == self.length

    @property
    def seconds(self) -> float:
        """Time spent on the epoch so far, including before it was resumed."""
        return time.perf_counter() - self._began

    def state_dict(self) -> ProgressState:
        """The state for a checkpoint; all processes must call this."""
        names = self.meter.names
        return {
            "batches": self.batches,
            "images": self.images,
            "sums": self.meter.over_processes(self._runtime),
            "names": None if names is None else list(names),
            "of_labelled": sorted(self.meter.of_labelled),
            "seconds": self.seconds,
            "lr": self.lr,
        }

    def load_state_dict(self, state: ProgressState) -> None:
        """Restore a state; the main process takes over the sums of all processes."""
        self.batches, self.images = state["batches"], state["images"]
        lr = state.get("lr")
        self.lr = self.lr if lr is None else lr
        self._began = time.perf_counter() - state["seconds"]
        sums = state["sums"]
        if sums is not None:
            mine = sums if self._runtime.is_main else torch.zeros_like(sums)
            self.meter.load_state(mine, state.get("names"), state.get("of_labelled", ["classification"]))

    def check(self) -> None:
        """Raise if the loss was not finite in any process; all processes must call this.

        Raises:
            DivergenceError: names the batch and the component.
        """
        check_finite(self.detector, self._runtime)
