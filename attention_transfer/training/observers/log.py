"""The .log file of a run, and its lines on standard output."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from attention_transfer.errors import WriteError
from attention_transfer.files import make_folder, why_not
from attention_transfer.networks.registry import network_name
from attention_transfer.progress import in_notebook
from attention_transfer.training.observers.base import Observer, Run
from attention_transfer.training.runtime import Runtime
from attention_transfer.training.state import EpochRecord
from attention_transfer.training.sums import Sums

LIBRARY = logging.getLogger("attention_transfer")
logger = logging.getLogger(__name__)


class _Keep(logging.Handler):
    """Keeps what is said before there is a file to write it to; bounded, for it listens on until the run ends."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=100)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _AboveTheBars(logging.Handler):
    """Writes lines to standard output without breaking the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


@contextmanager
def listening() -> Iterator[Iterable[logging.LogRecord]]:
    """For the time of a run the library speaks; what it says before the log is open is kept."""
    level, keep = LIBRARY.level, _Keep()
    LIBRARY.setLevel(logging.INFO)
    LIBRARY.addHandler(keep)
    try:
        yield keep.records
    finally:
        LIBRARY.removeHandler(keep)
        LIBRARY.setLevel(level)


@contextmanager
def speaking() -> Iterator[None]:
    """What the library says meanwhile goes to standard output, as during a run."""
    handler = _AboveTheBars()
    handler.setFormatter(logging.Formatter("%(message)s"))
    LIBRARY.addHandler(handler)
    try:
        with listening():
            yield
    finally:
        LIBRARY.removeHandler(handler)


class Log(Observer):
    """A line every print_freq batches and every epoch, in the .log and on a standard output that is no terminal."""

    def __init__(self) -> None:
        self._handlers: list[logging.Handler] = []
        self._epoch_began = 0.0

    def start(self, run: Run) -> None:
        to_file = _file_handler(run.artefacts.log)
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        to_screen = _AboveTheBars()
        to_screen.setFormatter(logging.Formatter("%(message)s"))
        if sys.stdout.isatty() or in_notebook():
            # the bars show there what these lines say, except what the rest of the library has to tell
            to_screen.addFilter(lambda record: record.name != __name__)
        self._handlers = [to_file, to_screen]
        for handler in self._handlers:
            for record in run.said_before:
                handler.handle(record)
            LIBRARY.addHandler(handler)
        logger.info("%s", _opening(run))

    def epoch_start(self, run: Run, epoch: int) -> None:
        self._epoch_began = time.perf_counter()

    def batch(self, run: Run, batch: int, sums: Sums) -> None:
        if (batch + 1) % run.config.print_freq:
            return
        means = sums.means(Runtime(run.runtime.device)).figures
        speed = sums.count / (time.perf_counter() - self._epoch_began)
        of_all = f"/{run.batches}" if run.batches else ""
        figures = _figures(means)
        logger.info("epoch %d batch %d%s: %s, %.0f images/s", run.state.epoch + 1, batch + 1, of_all, figures, speed)

    def epoch(self, run: Run, record: EpochRecord, is_best: bool) -> None:
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

    def end(self, run: Run, status: str) -> None:
        where = run.outcome.get("error") or f"best accuracy {run.state.best_accuracy:.2%}"
        logger.info("%s after %d of %d epochs: %s", status, run.state.epoch, run.config.epochs, where)

    def close(self) -> None:
        for handler in self._handlers:
            LIBRARY.removeHandler(handler)
            handler.close()
        self._handlers = []


def _file_handler(path: Path) -> logging.Handler:
    try:
        make_folder(path.parent)
        return logging.FileHandler(path, mode="a", encoding="utf-8")
    except OSError as error:
        raise WriteError(why_not(path, 0, error, "log_dir")) from error


def _opening(run: Run) -> str:
    config = run.config
    teacher = "no teacher"
    if run.teacher is not None:
        name = config.teacher_model or type(run.teacher).__name__
        teacher = f"teacher {name}, alpha {config.alpha:g}, beta {config.beta:g}"
    processes = f" in {run.runtime.world_size} processes" if run.runtime.world_size > 1 else ""
    begins = f"goes on after epoch {run.state.epoch}" if run.state.step else "begins"
    if run.state.unfinished is not None:
        begins += f" and {run.state.unfinished.batches} batches"
    return (
        f"{run.artefacts.name} {begins}: {network_name(run.state.student)}, {teacher}, on {run.runtime.device}"
        f"{processes} in {run.runtime.precision}"
    )


def _figures(means: dict[str, float]) -> str:
    words = [f"loss {means['loss']:.4f}", f"accuracy {means['accuracy']:.2%}"]
    words += [f"{key} {means[key]:.4g}" for key in ("kd", "attention") if means.get(key)]
    return ", ".join(words)
