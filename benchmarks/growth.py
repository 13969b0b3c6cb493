"""Ten times the images: does memory grow, and does time for each image?

    python -m benchmarks.growth --archive cifar10-jpeg.tar.xz

trains on 5,000 and on 50,000 images of CIFAR-10 from empty caches, each in a process of its own, with a student and
a teacher so small that what is measured is the library. Validation and test images are as many in both. About 15
minutes; memory does not mind what else the machine does, seconds do.

Workers that are forked inherit what the main process holds at that moment, which varies by 100 MB from run to run with
what its allocator keeps for later, and the sum over processes counts it in each of them; so the peak is also given
with such pages counted once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import psutil
import torch

from attention_transfer import create_at_config, create_model, train_at
from attention_transfer.errors import DataError
from benchmarks.measuring.memory_use import MB, Peak, use_of
from benchmarks.measuring.timing import processor
from benchmarks.study_cifar10 import link

SIZES = (5_000, 50_000)
HELD_OUT = 500
TARGET = 1.1
EPOCHS: dict[int | str, int] = {2: 3, "warp": 6}
"""Views, and how many epochs it takes until (almost) all answers are there, plus one."""

SETTINGS: dict[str, Any] = {
    "model": "CifarResNet-8",
    "image_size": 32,
    "batch_size": 256,
    "num_workers": 2,
    "augment": True,
    "beta": 1e3,
    "lr": 0.05,
    "device": "cpu",
    "precision": "fp32",
    "teacher_precision": "fp32",
    "pixel_cache": "on",
    "teacher_cache": "on",
    "print_freq": 10_000,
    "save_freq": 10_000,
    "figure_freq": 10_000,
    "overwrite": True,
}


class Growth(NamedTuple):
    """What a run took.

    Attributes:
        images: that it trained on.
        baseline: anonymous bytes after the imports.
        peak: anonymous bytes of all its processes at their most, a page that several have counted in each.
        shared_out: the same, such a page counted once.
        filling: seconds an image in the first epoch; remembered: in the last.
        whole: seconds an image of the whole run, decoding included.
    """

    images: int
    baseline: int
    peak: int
    shared_out: int
    filling: float
    remembered: float
    whole: float


def unpack(archive: Path, output: Path) -> Path:
    """All of CIFAR-10 as train/CLASS/NAME and test/CLASS/NAME, in one pass over the archive; kept for the next time."""
    whole, draft = output / "whole", output / "whole.draft"
    if whole.exists():
        return whole
    shutil.rmtree(draft, ignore_errors=True)
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            source = tar.extractfile(member) if member.isfile() else None
            parts = PurePosixPath(member.name).parts[-3:]
            if source is None or len(parts) < 3:
                continue
            target = draft.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read())
    return draft.rename(whole)


def draw(whole: Path, output: Path, images: int) -> Path:
    """An ImageFolder of hard links: the first training images of each class, and 500 each to validate and to test.

    Raises:
        DataError: a class has too few images.
    """
    data, draft = output / f"data-{images}", output / f"data-{images}.draft"
    if data.exists():
        return data
    classes = sorted(folder.name for folder in (whole / "train").iterdir())
    each, held_out = images // len(classes), HELD_OUT // len(classes)
    cuts = {"train": ("train", 0, each), "val": ("test", 0, held_out), "test": ("test", held_out, 2 * held_out)}
    for split, (source, first, last) in cuts.items():
        for name in classes:
            files = sorted((whole / source / name).iterdir())
            if len(files) < last:
                raise DataError(f"{whole / source / name} has {len(files)} images, fewer than {last}.")
            link(draft / split / name, files[first:last])
    return draft.rename(data)


def train() -> None:
    """The process that is measured: reads settings, says what it holds before the run, then the run's history."""
    settings, start_method = json.load(sys.stdin)
    multiprocessing.set_start_method(start_method)
    print(use_of().anonymous, flush=True)
    torch.manual_seed(0)
    teacher = create_model("CifarResNet-8", 10)
    # the run's lines are in its .log too
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        results = train_at(create_at_config(**settings), teacher=teacher)
    print(json.dumps(results["training_history"]), flush=True)


def measure(data: Path, images: int, views: int | str, output: Path, start_method: str) -> Growth:
    """One run from empty caches, in a new process that this one watches.

    Raises:
        RuntimeError: the process failed; it has printed why.
    """
    shutil.rmtree(output / "cache", ignore_errors=True)
    folders = {"cache_dir": "cache", "save_dir": "checkpoints", "log_dir": "logs"}
    settings = {
        **SETTINGS,
        **{key: str(output / name) for key, name in folders.items()},
        "data_dir": str(data),
        "augment_views": views,
        "epochs": EPOCHS[views],
        "experiment_name": f"growth-{images}-{views}",
    }
    # no process of multiprocessing's: it would hand its own start method down to the workers
    command = [sys.executable, "-c", "from benchmarks.growth import train; train()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([settings, start_method]))
        process.stdin.close()
        baseline = process.stdout.readline()
        began = time.perf_counter()
        with Peak(psutil.Process(process.pid)) as peak:
            history = process.stdout.readline()
            whole = time.perf_counter() - began
    if not history:
        raise RuntimeError(f"the run on {images} images failed with exit status {process.returncode}; see above.")
    first, *_, last = (record["seconds"] / images for record in json.loads(history))
    return Growth(images, int(baseline), peak.anonymous, peak.shared_out, first, last, whole / images)


def row(of: Growth) -> str:
    """A line of the table: anonymous megabytes, and microseconds an image."""
    seconds = "".join(f"{1e6 * value:14.0f}" for value in (of.filling, of.remembered, of.whole))
    return f"  {of.images:>8,} images {of.baseline / MB:14.0f} {of.peak / MB:12.0f} {of.shared_out / MB:12.0f}{seconds}"


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help="tar of CIFAR-10 as JPEG files, train/ and test/")
    parser.add_argument("--output", type=Path, default=Path("runs/growth"), help="where data and caches are put")
    parser.add_argument("--views", nargs="+", choices=[str(views) for views in EPOCHS], default=["2", "warp"])
    parser.add_argument(
        "--start-method",
        choices=multiprocessing.get_all_start_methods(),
        default=multiprocessing.get_start_method(),
        help="how workers begin (default: %(default)s)",
    )
    options = parser.parse_args(arguments)

    output = options.output.resolve()
    whole = unpack(options.archive, output)
    folders = {images: draw(whole, output, images) for images in SIZES}
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for views in (views for views in EPOCHS if str(views) in options.views):
        print(f"\n## augment_views={views}, {EPOCHS[views]} epochs, workers by {options.start_method}")
        times = "".join(f" {title:>13}" for title in ("µs: epoch 1", "last epoch", "whole run"))
        print(f"  {'':15} {'MB at first':>14} {'at peak':>12} {'counted once':>12}{times}")
        few, many = (measure(data, images, views, output, options.start_method) for images, data in folders.items())
        print(f"{row(few)}\n{row(many)}")
        times = "".join(f"{getattr(many, key) / getattr(few, key):14.2f}" for key in ("filling", "remembered", "whole"))
        ratio, once = many.peak / few.peak, many.shared_out / max(1, few.shared_out)
        verdict = "met" if ratio <= TARGET else "MISSED"
        print(f"  {'ratio':>15} {many.baseline / few.baseline:14.2f} {ratio:12.2f} {once:12.2f}{times}")
        print(f"  peak of {SIZES[1]:,} against {SIZES[0]:,} images: x {ratio:.3f}, target at most {TARGET}: {verdict}")


if __name__ == "__main__":
    main()
