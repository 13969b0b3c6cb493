"""The TensorBoard callback: scalars, attention figures, hyperparameters, by step (batch) of the run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from attention_transfer.distributed import Runtime
from attention_transfer.errors import ConfigError, WriteError
from attention_transfer.files import write_failure
from attention_transfer.training.callbacks.base import Callback
from attention_transfer.training.checkpointing.paths import FINISHED
from attention_transfer.training.checkpointing.state import EpochRecord
from attention_transfer.training.context import RunContext
from attention_transfer.training.metrics import MeanMeter
from attention_transfer.visualization import attention_figure, figure_to_tensor

logger = logging.getLogger(__name__)


class TensorBoard(Callback):
    """Writes events.out.tfevents.* files; points beyond a resumed checkpoint are purged."""

    def __init__(self) -> None:
        self._writer: Any = None
        self._folder = Path()

    def run_started(self, run: RunContext) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.batch_interval = run.config.print_freq
        purge_step = run.state.step + 1 if run.state.step else None
        unfinished = run.state.unfinished
        if unfinished is not None and unfinished["batches"] == run.batches:
            # trained but not yet validated: the epoch's figures may have been written, and will be written again
            purge_step = run.state.step
        self._folder = run.paths.tensorboard
        with self._writing():
            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
        if unfinished is not None and purge_step == run.state.step:
            meter = MeanMeter(run.runtime.device)
            meter.load_state(unfinished["sums"], unfinished.get("names"))
            if not unfinished["batches"] % self.batch_interval:
                self.batch_trained(run, unfinished["batches"] - 1, meter)

    def epoch_paused(self, run: RunContext) -> None:
        with self._writing():
            self._writer.flush()

    def batch_trained(self, run: RunContext, batch: int, meter: MeanMeter) -> None:
        means = meter.means(Runtime(run.runtime.device)).figures
        with self._writing():
            for key in ("loss", "accuracy"):
                self._writer.add_scalar(f"batch/{key}", means[key], run.state.step)

    def epoch_completed(self, run: RunContext, record: EpochRecord, is_best: bool) -> None:
        with self._writing():
            for key, value in record.items():
                split, _, name = key.partition("_")
                tag = f"{name}/{split}" if split in ("train", "val") else f"run/{key}"
                if key != "epoch":
                    self._writer.add_scalar(tag, value, run.state.step)
            if run.images is not None and _is_due(run):
                self._draw(run, run.images)
            self._writer.flush()

    def _draw(self, run: RunContext, images: Tensor) -> None:
        try:
            figure = attention_figure(run.state.student, images, run.config, teacher=run.teacher)
        except ConfigError as error:
            logger.info("attention is not drawn: %s", error)
            run.images = None
            return
        self._writer.add_image("attention", figure_to_tensor(figure), run.state.step)

    def run_ended(self, run: RunContext, status: str) -> None:
        if status != FINISHED:
            return  # it may be resumed, and has no final metric yet
        from torch.utils.tensorboard.summary import hparams

        metrics = {"hparam/best_accuracy": run.state.best_accuracy}
        if run.state.best_balanced_accuracy is not None:
            metrics["hparam/best_balanced_accuracy"] = run.state.best_balanced_accuracy
        test_results = run.outcome.get("test_results")
        if test_results:
            metrics["hparam/test_accuracy"] = test_results["accuracy"]
            metrics["hparam/test_balanced_accuracy"] = test_results["balanced_accuracy"]
        settings = {key: _plain(value) for key, value in run.config.model_dump().items() if value is not None}
        # writer.add_hparams would put these into a file of their own, which a resumed run could not be sure to purge.
        # They are one step beyond the last batch, where a resumed run purges them and writes its own at the end.
        beyond = run.state.step + 1
        with self._writing():
            for summary in hparams(settings, metrics):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(summary, beyond)
            for tag, value in metrics.items():
                self._writer.add_scalar(tag, value, beyond)

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        events = writer.file_writer.event_writer
        with self._writing():
            try:
                writer.close()
            finally:
                # on a full disk the writer leaves its thread running, which would keep retrying
                events.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Convert the OSError that the writer's thread raises in the next call into a `WriteError`."""
        try:
            yield
        except OSError as error:
            raise WriteError(write_failure(self._folder / "events.out.tfevents", 0, error, "log_dir")) from error


def _is_due(run: RunContext) -> bool:
    epoch, every = run.state.epoch, run.config.figure_freq
    return every > 0 and (epoch % every == 0 or epoch == 1 or run.state.is_complete)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else str(value)
