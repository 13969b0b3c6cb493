"""What each loss term costs where the teacher is remembered: `python -m benchmarks.terms.cost`. Run it alone.

For each term the time of an epoch with it, over that without a teacher; ResNet-56 to ResNet-20 on a part of CIFAR-10.
Arms take turns in blocks; each figure is a median with its 95 % interval. Target: at most 1.04. About twenty minutes;
`--only` takes parts of names (`--only max DKD`); `--images`, `--rounds` and `--block` shorten it; `--cpu` counts the
process's own processor time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.arms.benchmark_data import cifar_slice
from benchmarks.arms.ours import Ours, cifar_task
from benchmarks.measuring.statistics import ratio_interval
from benchmarks.measuring.timing import processor
from benchmarks.terms.settings import TERMS

TARGET = 1.04
SHARED = Path(__file__).resolve().parents[3] / "shared"


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with data/ and weights/")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="where data and caches are put")
    parser.add_argument("--only", nargs="+", help="words, one of which a term's name must have")
    parser.add_argument("--images", type=int, default=2000, help="of CIFAR-10")
    parser.add_argument("--cpu", action="store_true", help="processor time instead of the time that passes")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block", type=int, default=8, help="batches between two turns")
    options = parser.parse_args(arguments)

    output = options.output.resolve()
    data = cifar_slice(options.shared / "data" / "cifar10-jpeg.tar.xz", output, options.images)
    task = cifar_task(data, options.shared / "weights" / "cifar10-jpeg-resnet56.pth", output / "cache-terms")
    task = replace(task, block=options.block)
    chosen = {
        name: settings
        for name, settings in TERMS.items()
        if options.only is None or any(word in name for word in options.only)
    }
    # two views of each image: half the answers to ask for first, and as many to read a step
    none = Ours("without a teacher", task, teacher=False, augment_views=2)
    arms = [none, *(Ours(name, task, augment_views=2, **settings) for name, settings in chosen.items())]
    clock = time.process_time if options.cpu else time.perf_counter
    rates: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for turn in range(options.rounds + 1):
        for arm in arms:
            began = clock()
            images = arm.block(task.block).images
            if turn:
                rates[arm.name].append(images / (clock() - began))
    print(f"\n{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {none.config.precision}")
    unit = "processor time" if options.cpu else "time that passed"
    print(f"{task.title}, batch {task.batch_size}, {options.rounds} rounds of {task.block} batches, {unit}")
    print(f"  {none.name:34} {statistics.median(rates[none.name]):9.1f} images/s")
    for name in chosen:
        print(f"  {name:34} x {ratio_interval(rates[none.name], rates[name])}   target: at most {TARGET}")


if __name__ == "__main__":
    main()
