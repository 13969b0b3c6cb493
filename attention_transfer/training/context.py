"""The run as its callbacks see it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from attention_transfer.config import Config
from attention_transfer.data.class_table import ClassCounts
from attention_transfer.distributed import Runtime
from attention_transfer.training.checkpointing.paths import RunPaths
from attention_transfer.training.checkpointing.state import RunState


@dataclass
class RunContext:
    """The run, as its callbacks see it.

    Attributes:
        config: the resolved configuration.
        state: the training state.
        paths: of the run's files.
        runtime: device, precision, processes.
        teacher: the teacher's network, or None.
        splits: number of images of each split, None for a loader of unknown length.
        batches: batches per epoch; None for a loader of unknown length.
        validates: whether there is a validation loader.
        images_per_class: by class and split, see `data.class_table`; None if no loader has them.
        images: a few fixed validation images [B, C, H, W], to draw attention on; None without validation.
        captured_logs: records logged before the run's log was open.
        outcome: filled at the end: test results, or why there are none, and error.
        stop_reason: why a callback has ended the run; None if none has.
    """

    config: Config
    state: RunState
    paths: RunPaths
    runtime: Runtime
    teacher: nn.Module | None
    splits: dict[str, int | None]
    batches: int | None
    validates: bool
    images_per_class: ClassCounts | None = None
    images: Tensor | None = None
    captured_logs: Iterable[logging.LogRecord] = ()
    outcome: dict[str, Any] = field(default_factory=dict)
    stop_reason: str | None = None

    def stop(self, reason: str) -> None:
        """End the run at the next batch: it is saved, and `train_at` returns with status "stopped".

        With several processes the main one decides.

        Args:
            reason: why; `stopped_by` in the results.
        """
        self.stop_reason = reason
