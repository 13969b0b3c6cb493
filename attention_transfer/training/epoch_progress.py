"""How far an epoch of training is: one object, which an unfinished epoch's checkpoint keeps and restores."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from attention_transfer.distributed import Runtime
from attention_transfer.training.metrics import MeanMeter, NonFiniteDetector, check_finite


class ProgressState(TypedDict):
    """What a checkpoint keeps of an unfinished epoch.

    Attributes:
        batches: that are done.
        images: that are done, over all processes; the position in the epoch's order.
        sums: of losses and correct predictions over them, of all processes; see `MeanMeter`.
        names: of the sums; absent in checkpoints of version 0.1.
        seconds: that they took.
    """

    batches: int
    images: int
    sums: Tensor | None
    names: NotRequired[list[str] | None]
    seconds: float


def as_progress(state: Mapping[str, Any]) -> ProgressState:
    """The state of an unfinished epoch in a checkpoint.

    Raises:
        KeyError: something of it is missing.
    """
    return {
        "batches": state["batches"],
        "images": state["images"],
        "sums": state["sums"],
        "names": state.get("names"),
        "seconds": state["seconds"],
    }


class EpochProgress:
    """An epoch of training between two of its batches.

    Args:
        runtime: gives device and processes.
        weights: of the terms of the loss, by name: one whose weight is 0 is not to blame for a loss that is no number.
        epoch: its number, from 0.
        length: batches in it; None where the loader does not tell.

    Attributes:
        batches: that are done.
        images: that are done, over all processes.
        meter: sums of this process.
        detector: notices a loss that is not finite.
    """

    def __init__(
        self, runtime: Runtime, weights: Mapping[str, float], epoch: int = 0, length: int | None = None
    ) -> None:
        self.epoch = epoch
        self.length = length
        self.batches = self.images = 0
        self.meter = MeanMeter(runtime.device)
        self.detector = NonFiniteDetector(runtime.device, weights)
        self._runtime = runtime
        self._began = time.perf_counter()

    @property
    def epochs(self) -> float:
        """Epochs done, with the fraction of this one."""
        return self.epoch + (self.batches / self.length if self.length else 0.0)

    @property
    def seconds(self) -> float:
        """That the epoch has taken so far, also before it was resumed."""
        return time.perf_counter() - self._began

    def state_dict(self) -> ProgressState:
        """The state for a checkpoint; every process must call this together."""
        names = self.meter.names
        return {
            "batches": self.batches,
            "images": self.images,
            "sums": self.meter.over_processes(self._runtime),
            "names": None if names is None else list(names),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: ProgressState) -> None:
        """Continue from a state; the sums of all processes are the main one's from here on."""
        self.batches, self.images = state["batches"], state["images"]
        self._began = time.perf_counter() - state["seconds"]
        sums = state["sums"]
        if sums is not None:
            self.meter.load_state(sums if self._runtime.is_main else torch.zeros_like(sums), state.get("names"))

    def check(self) -> None:
        """Raise what the detector of any process has seen; every process must call this together.

        Raises:
            DivergenceError: names the batch and the component.
        """
        check_finite(self.detector, self._runtime)
