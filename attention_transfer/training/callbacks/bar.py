"""The progress bars of a run: one over epochs, one over the batches of an epoch."""

from __future__ import annotations

import time
from typing import Any

from attention_transfer.distributed import Runtime
from attention_transfer.progress import progress_bar
from attention_transfer.training.callbacks.base import Callback
from attention_transfer.training.checkpointing.state import EpochRecord
from attention_transfer.training.context import RunContext
from attention_transfer.training.metrics import MeanMeter

SECONDS_BETWEEN_FIGURES = 0.5


class Bar(Callback):
    """tqdm's bars with loss, accuracy and images per second; disabled where output is not a terminal or notebook."""

    def __init__(self) -> None:
        self._epochs: Any = None
        self._batches: Any = None
        self._local: Runtime | None = None
        self._epoch_began = self._shown = 0.0

    def run_started(self, run: RunContext) -> None:
        self._local = Runtime(run.runtime.device)
        self._epochs = progress_bar(
            total=run.config.epochs,
            initial=run.state.epoch,
            desc=run.paths.name,
            unit="epoch",
            leave=True,
        )

    def epoch_started(self, run: RunContext, epoch: int) -> None:
        self._batches = progress_bar(total=run.batches, desc=f"epoch {epoch}", unit="batch")
        self._epoch_began = self._shown = time.perf_counter()

    def batch_trained(self, run: RunContext, batch: int, meter: MeanMeter) -> None:
        self._batches.update()
        now = time.perf_counter()
        if self._batches.disable or now - self._shown < SECONDS_BETWEEN_FIGURES or self._local is None:
            return
        self._shown = now
        means = meter.means(self._local).figures
        speed = meter.count / (now - self._epoch_began)
        self._batches.set_postfix_str(
            f"loss {means['loss']:.3f}, accuracy {means['accuracy']:.1%}, {speed:.0f} images/s"
        )

    def epoch_completed(self, run: RunContext, record: EpochRecord, is_best: bool) -> None:
        self._batches.close()
        self._epochs.update()
        accuracy = record.get("val_accuracy", record["train_accuracy"])
        self._epochs.set_postfix_str(f"accuracy {accuracy:.1%}, best {run.state.best_accuracy:.1%}")

    def close(self) -> None:
        for bar in (self._batches, self._epochs):
            if bar is not None:
                bar.close()
