"""Does a long run, or a process with many runs, lose memory, files or workers?

    python -m benchmarks.soak

trains 200 short epochs, then twenty times in one process, on a few of the handwritten digits, with workers,
augmentation and both caches. After warming up, anonymous memory may rise by less than 0.05 MB an epoch (a run), and
open files and children must stay as many as they are. Exits with 1 where that does not hold. About three minutes.

No attention figures are drawn: matplotlib's share of the heap takes some 25 of them until it is as large as it gets
(30 MB), which hides what little a run might lose. With --figures they are drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from attention_transfer import create_at_config, create_model, train_at
from attention_transfer.cli.digits import write_digits
from attention_transfer.training.callbacks.tensorboard import TensorBoard
from attention_transfer.training.context import RunContext
from benchmarks.measuring.memory_use import MB, Use, let_go, use_of
from benchmarks.measuring.timing import processor
from benchmarks.study_cifar10 import link

STEEPEST = 0.05
"""MB an epoch, or a run."""

WARM_EPOCHS, WARM_RUNS = 20, 5
EPOCHS_OF_A_RUN = 5
IMAGES_OF_A_CLASS = {"train": 4, "val": 1, "test": 1}

SETTINGS: dict[str, Any] = {
    "model": "CifarResNet-8",
    "image_size": 32,
    "batch_size": 10,
    "num_workers": 2,
    "augment": True,
    "augment_views": 4,
    "device": "cpu",
    "precision": "fp32",
    "teacher_precision": "fp32",
    "pixel_cache": "on",
    "teacher_cache": "on",
}


def few_digits(folder: Path) -> Path:
    """An ImageFolder of 60 handwritten digits: train/, val/ and test/."""
    data, draft = folder / "digits", folder / "digits.draft"
    if not data.exists():
        write_digits(draft / "all")
        for of_class in sorted((draft / "all").iterdir()):
            files = iter(sorted(of_class.iterdir()))
            for split, count in IMAGES_OF_A_CLASS.items():
                link(draft / split / of_class.name, [next(files) for _ in range(count)])
        shutil.rmtree(draft / "all")
        draft.rename(data)
    return data


class _AtEachEpoch(logging.Handler):
    """Looks at the process's use when a run logs that an epoch is over: its loaders rest then."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: list[Use] = []

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("epoch %d/%d:"):
            self.uses.append(_look())


def _look() -> Use:
    let_go()
    return use_of()


@contextlib.contextmanager
def _sampled() -> Iterator[list[Use]]:
    """The use after each epoch of what runs in the block."""
    handler, library = _AtEachEpoch(), logging.getLogger("attention_transfer")
    library.addHandler(handler)
    try:
        yield handler.uses
    finally:
        library.removeHandler(handler)


@contextlib.contextmanager
def without_figures() -> Iterator[None]:
    """Runs in the block draw no attention figures."""
    with mock.patch.object(TensorBoard, "_draw", new=_draw_nothing):
        yield


# a mock in its place would keep what it is called with
def _draw_nothing(callback: TensorBoard, run: RunContext, images: Tensor) -> None:
    pass


def _train(folder: Path, name: str, epochs: int) -> None:
    torch.manual_seed(1)
    folders = {"cache_dir": "cache", "save_dir": "checkpoints", "log_dir": "logs"}
    config = create_at_config(
        **SETTINGS,
        **{key: str(folder / of) for key, of in folders.items()},
        data_dir=str(few_digits(folder)),
        epochs=epochs,
        experiment_name=name,
        overwrite=True,
    )
    # the run's lines are in its .log too
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        train_at(config, teacher=create_model("CifarResNet-8", 10))


def long_run(folder: Path, epochs: int) -> list[Use]:
    """The use after each epoch of one run."""
    with _sampled() as uses:
        _train(folder, "long", epochs)
    return uses


def many_runs(folder: Path, runs: int, epochs: int = EPOCHS_OF_A_RUN) -> list[Use]:
    """The use after each of several runs in this process."""
    uses = []
    for number in range(runs):
        _train(folder, f"run-{number}", epochs)
        uses.append(_look())
    return uses


def slope(uses: Sequence[Use]) -> float:
    """MB of anonymous memory from one look to the next, by least squares."""
    return statistics.linear_regression(range(len(uses)), [use.anonymous / MB for use in uses]).slope


def judge(what: str, unit: str, uses: Sequence[Use], warm: int) -> bool:
    """Print what became of memory, files and children once all was warm; whether it is as it should be."""
    first, last = uses[warm], uses[-1]
    settled = uses[warm:]
    rises = slope(settled)
    constant = {name: len({getattr(use, name) for use in settled}) == 1 for name in ("files", "children")}
    passed = rises < STEEPEST and all(constant.values())
    print(f"\n## {what}, after the first {warm}")
    print(f"  anonymous memory  {first.anonymous / MB:.1f} to {last.anonymous / MB:.1f} MB, ", end="")
    print(f"slope {rises:+.4f} MB {unit} (target: below {STEEPEST})")
    for name, is_constant in constant.items():
        counts = f"{getattr(first, name)} to {getattr(last, name)}"
        print(f"  {name:17} {counts}, {'constant' if is_constant else 'NOT constant'}")
    print(f"  {'PASS' if passed else 'FAIL'}")
    return passed


def main(arguments: Iterable[str] | None = None) -> int:
    """Print what was seen; 0 where all is as it should be, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="where data, caches and logs are put")
    parser.add_argument("--epochs", type=int, default=200, help=f"more than {WARM_EPOCHS + 1}")
    parser.add_argument("--runs", type=int, default=20, help=f"more than {WARM_RUNS + 1}")
    parser.add_argument("--figures", action="store_true", help="draw attention figures too")
    options = parser.parse_args(arguments)
    if options.epochs < WARM_EPOCHS + 2 or options.runs < WARM_RUNS + 2:
        parser.error(
            f"a slope needs two looks after the first {WARM_EPOCHS} epochs, and after the first {WARM_RUNS} runs"
        )

    output = options.output.resolve()
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with contextlib.nullcontext() if options.figures else without_figures():
        epochs = judge(f"{options.epochs} epochs", "an epoch", long_run(output, options.epochs), WARM_EPOCHS)
        title = f"{options.runs} runs of {EPOCHS_OF_A_RUN} epochs"
        runs = judge(title, "a run", many_runs(output, options.runs), WARM_RUNS)
    return 0 if epochs and runs else 1


if __name__ == "__main__":
    sys.exit(main())
