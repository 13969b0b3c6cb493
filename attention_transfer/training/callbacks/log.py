"""The .log file of a run, and its lines on standard output."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from attention_transfer.distributed import Runtime
from attention_transfer.errors import WriteError
from attention_transfer.files import make_folder, write_failure
from attention_transfer.logs import LIBRARY, ConsoleHandler
from attention_transfer.networks.registry import network_name
from attention_transfer.progress import in_notebook
from attention_transfer.training.callbacks.base import Callback
from attention_transfer.training.checkpointing.state import EpochRecord
from attention_transfer.training.context import RunContext
from attention_transfer.training.metrics import MeanMeter

logger = logging.getLogger(__name__)


class Log(Callback):
    """A line every print_freq batches and every epoch, in the .log and on a standard output that is no terminal."""

    def __init__(self) -> None:
        self._handlers: list[logging.Handler] = []
        self._epoch_began = 0.0

    def run_started(self, run: RunContext) -> None:
        self.batch_interval = run.config.print_freq
        to_file = _file_handler(run.paths.log)
        self._handlers = [to_file]
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        to_screen = ConsoleHandler()
        to_screen.setFormatter(logging.Formatter("%(message)s"))
        if sys.stdout.isatty() or in_notebook():
            # the bars show what these lines do; records of the rest of the library are still printed
            to_screen.addFilter(lambda record: record.name != __name__)
        self._handlers = [to_file, to_screen]
        for handler in self._handlers:
            for record in run.captured_logs:
                handler.handle(record)
            LIBRARY.addHandler(handler)
        logger.info("%s", _opening(run))

    def epoch_started(self, run: RunContext, epoch: int) -> None:
        self._epoch_began = time.perf_counter()

    def batch_trained(self, run: RunContext, batch: int, meter: MeanMeter) -> None:
        means = meter.means(Runtime(run.runtime.device)).figures
        speed = meter.count / (time.perf_counter() - self._epoch_began)
        of_all = f"/{run.batches}" if run.batches else ""
        figures = _figures(means)
        logger.info("epoch %d batch %d%s: %s, %.0f images/s", run.state.epoch + 1, batch + 1, of_all, figures, speed)

    def epoch_completed(self, run: RunContext, record: EpochRecord, is_best: bool) -> None:
        train = {key.removeprefix("train_"): value for key, value in record.items() if key.startswith("train_")}
        val = {key.removeprefix("val_"): value for key, value in record.items() if key.startswith("val_")}
        logger.info(
            "epoch %d/%d: train %s%s, lr %g, %.1f s, %.0f images/s%s",
            run.state.epoch,
            run.config.epochs,
            _figures(train),
            f"; val {_figures(val)}" if val else "",
            record["lr"],
            record["seconds"],
            record["images_per_second"],
            ", best so far" if is_best and run.validates else "",
        )

    def run_ended(self, run: RunContext, status: str) -> None:
        balanced = run.state.best_balanced_accuracy
        best = f"best accuracy {run.state.best_accuracy:.2%}"
        best += "" if balanced is None else f", balanced {balanced:.2%} in that epoch"
        early = run.state.finished_early
        where = run.outcome.get("error") or (f"{early}; {best}" if early else best)
        logger.info("%s after %d of %d epochs: %s", status, run.state.epoch, run.config.epochs, where)

    def close(self) -> None:
        handlers, self._handlers = self._handlers, []
        with ExitStack() as closing:
            for handler in handlers:
                # removed before it is closed: closing another handler may log
                closing.callback(handler.close)
                closing.callback(LIBRARY.removeHandler, handler)


def _file_handler(path: Path) -> logging.Handler:
    try:
        make_folder(path.parent)
        return logging.FileHandler(path, mode="a", encoding="utf-8")
    except OSError as error:
        raise WriteError(write_failure(path, 0, error, "log_dir")) from error


def _opening(run: RunContext) -> str:
    config = run.config
    teacher = "no teacher"
    if run.teacher is not None:
        name = config.teacher_model or type(run.teacher).__name__
        teacher = f"teacher {name}, alpha {config.alpha:g}, beta {config.beta:g}"
    processes = f" in {run.runtime.world_size} processes" if run.runtime.world_size > 1 else ""
    begins = f"goes on after epoch {run.state.epoch}" if run.state.step else "begins"
    if run.state.unfinished is not None:
        begins += f" and {run.state.unfinished['batches']} batches"
    return (
        f"{run.paths.name} {begins}: {network_name(run.state.student)}, {teacher}, on {run.runtime.device}"
        f"{processes} in {run.runtime.precision}"
    )


def _figures(means: dict[str, float]) -> str:
    words = [f"loss {means['loss']:.4f}", f"accuracy {means['accuracy']:.2%}"]
    if "balanced_accuracy" in means:
        words.append(f"balanced {means['balanced_accuracy']:.2%}")
    words += [f"{key} {means[key]:.4g}" for key in _terms(means) if means[key]]
    return ", ".join(words)


def _terms(means: dict[str, float]) -> list[str]:
    """The loss terms among an epoch's figures, without the parts that a term reports beside its sum."""
    others = [key for key in means if key not in ("loss", "accuracy", "balanced_accuracy", "classification")]
    return [key for key in others if not any(key.startswith(f"{whole}_") for whole in others)]
