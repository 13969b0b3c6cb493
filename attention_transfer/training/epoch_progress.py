"""Where an epoch is: what was consumed of it, what it came to so far, and whether its numbers are still numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_transfer.config import Config
from attention_transfer.distributed import Runtime
from attention_transfer.training.metrics import MeanMeter, NonFiniteDetector, check_finite


class EpochProgress:
    """An epoch of training between two of its batches.

    Args:
        runtime: gives device and processes.
        config: components whose weight is 0 are not to blame for a loss that is no number.

    Attributes:
        batches: that are done.
        images: that are done, over all processes.
        sums: of this process.
    """

    def __init__(self, runtime: Runtime, config: Config) -> None:
        self.batches = self.images = 0
        self.sums = MeanMeter(runtime.device)
        self.watch = NonFiniteDetector(runtime.device, config)
        self._runtime = runtime

    def go_on(self, batches: int, images: int, sums: Tensor | None) -> None:
        """Go on after so many batches; `sums` are those of all processes, and the main one's from here on."""
        self.batches, self.images = batches, images
        if sums is not None:
            self.sums.load_state(sums if self._runtime.is_main else torch.zeros_like(sums))

    def check(self) -> None:
        """Raise what the watch of any process has seen; every process must call this together.

        Raises:
            DivergenceError: names the batch and the component.
        """
        check_finite(self.watch, self._runtime)
