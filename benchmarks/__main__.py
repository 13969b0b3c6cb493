"""`make bench`: what a teacher costs, side by side, in at most 25 minutes. Run it alone.

Arms take turns in blocks, so that whatever else the machine does hits them alike; each figure is a median with its
95 % interval. With `--only` parts of it can be had: cifar, photos, whole, micro.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from attention_transfer import create_model
from benchmarks.arms import bare, torchdistill_arm, whole_run
from benchmarks.arms.benchmark_data import cifar_slice, photos_640
from benchmarks.arms.ladder import channels_last_arm, fast_map_arm, pixel_store_arm, textbook_arm
from benchmarks.arms.ours import BETA, LR, Ours, Part, Task, cifar_task, photos_task, step_ratio
from benchmarks.arms.textbook import training_loader, training_set
from benchmarks.arms.whole_run import WORKERS
from benchmarks.measuring.statistics import Arm, ratio_interval
from benchmarks.measuring.timing import processor, table, take_turns
from benchmarks.terms import attention_loss

SHARED = Path(__file__).resolve().parents[2] / "shared"
SECTIONS = ("cifar", "photos", "whole", "micro")
AnyArm = Arm | Ours
Rates = dict[str, list[float]]
LADDER_ROUNDS = 4
LOADER_ROUNDS = 5


def bare_arm(task: Task, like: Ours) -> Arm:
    """The 25-line loop over the same batches, in the same number format."""
    torch.manual_seed(0)
    student = create_model(task.student, task.classes)
    optimizer = torch.optim.SGD(student.parameters(), LR, momentum=0.9, weight_decay=5e-4)
    part = own_part(task)
    precision = like.config.precision
    return Arm(
        "a'. bare loop, no teacher", lambda: bare.train_epoch(student, part.of(task.block), optimizer, precision)
    )


def own_part(task: Task) -> Part:
    """Our loader, read from the pixel store, in epochs of a block."""
    return Part(Ours("loader", task, teacher=False)._loaders.train, task.batch_size)


def torchdistill_arms(task: Task, num_workers: int) -> list[Arm]:
    """g. torchdistill's own loop; none where it is not installed."""
    reason = torchdistill_arm.left_out()
    if reason is not None:
        print(reason)
        return []
    torch.manual_seed(0)
    box = torchdistill_arm.make_box(
        create_model(task.student, task.classes),
        task.teacher(),
        training_set(task.data / "train", task.image_size),
        batch_size=task.batch_size,
        num_workers=num_workers,
        lr=LR,
        momentum=0.9,
        weight_decay=5e-4,
        beta=BETA,
        images=task.block * task.batch_size,
    )
    return [Arm(f"g. torchdistill, {num_workers} workers", lambda: torchdistill_arm.train_epoch(box))]


def take_turns_in_blocks(arms: Sequence[AnyArm], batches: int, rounds: int) -> Rates:
    """Images a second of each block of each arm, after one block to warm up."""
    rates: Rates = {arm.name: [] for arm in arms}
    for turn in range(rounds + 1):
        for arm in arms:
            rate = arm.block(batches).rate
            if turn:
                rates[arm.name].append(rate)
    return rates


def best_textbook(task: Task) -> tuple[Arm, int]:
    """The textbook's recipe with the number of workers that is fastest here."""
    arms = {workers: textbook_arm(task, workers) for workers in (0, 1, 2)}
    rates = take_turns_in_blocks(list(arms.values()), task.block, 1)
    fastest = max(arms, key=lambda workers: statistics.median(rates[arms[workers].name]))
    return arms[fastest], fastest


def compare(task: Task, rounds: int) -> None:
    """The table of a task, its ratios and its ladder."""
    began = time.perf_counter()
    textbook, workers = best_textbook(task)
    none = Ours("a. our loop, no teacher", task, teacher=False)
    arms: list[AnyArm] = [
        none,
        bare_arm(task, none),
        Ours("b. remembered, K = 4", task),
        Ours("b. remembered, warp", task, augment_views="warp"),
        Ours("c. filling", task, refill=True, cache_dir=str(task.cache / "filled")),
        Ours("d. live", task, teacher_cache="off"),
        textbook,
        *torchdistill_arms(task, workers),
    ]
    remembered, live = arms[2], arms[5]
    assert isinstance(live, Ours)
    ladder = [
        textbook,
        channels_last_arm(task, workers),
        pixel_store_arm(task, own_part(task).of(task.block)),
        fast_map_arm(task, own_part(task).of(task.block)),
        live,
        remembered,
    ]
    print(f"\n## {task.title}, batch {task.batch_size}, {rounds} rounds of {task.block} batches")
    print(f"auto chose {none.config.precision} for the student and {live.config.teacher_precision} for the teacher")
    rates = take_turns_in_blocks(arms, task.block, rounds)
    base = rates[none.name]
    for name, values in rates.items():
        print(f"  {name:34} {statistics.median(values):9.1f} images/s   time of a: x {ratio_interval(base, values)}")
    r = step_ratio(task.cache, task.student)
    print_ratios(rates, r)
    print_share([arm for arm in arms if arm.name.startswith("b.")], rates, task)
    print_ladder(take_turns_in_blocks(ladder, task.block, LADDER_ROUNDS))
    print(f"  ({time.perf_counter() - began:.0f} s)")


def print_ratios(rates: Rates, r: float) -> None:
    """The ratios that have targets."""

    def values(prefix: str) -> list[float]:
        return next(values for name, values in rates.items() if name.startswith(prefix))

    pairs = [
        ("a / a', images a second", "a.", "a'.", "at least 0.97"),
        ("b / a, K = 4", "a.", "b. remembered, K", "at most 1.02 (photos), 1.04 (CIFAR-10)"),
        ("b / a, warp", "a.", "b. remembered, warp", "at most 1.02 (photos), 1.04 (CIFAR-10)"),
        ("c / d", "d.", "c.", "at most 1.05"),
        ("f / b, K = 4", "b. remembered, K", "f.", f"at least 2.2 r = {2.2 * r:.2f}"),
        ("f / b, warp", "b. remembered, warp", "f.", f"at least 2.2 r = {2.2 * r:.2f}"),
    ]
    if any(name.startswith("g.") for name in rates):
        pairs.append(("g / b, K = 4", "b. remembered, K", "g.", f"at least 2 r = {2 * r:.2f}"))
    print(f"  ratios (of times, but for the first); r = {r:.2f}")
    for title, one, other, target in pairs:
        print(f"    {title:26} {ratio_interval(values(one), values(other))}   target: {target}")


def print_share(remembered: Sequence[AnyArm], rates: Rates, task: Task) -> None:
    """What the attention loss is of a step: its own time, with nothing else between, over a step's."""
    for arm in remembered:
        assert isinstance(arm, Ours)
        alone = statistics.median(take_turns({"": arm.attention_alone()}, rounds=30)[""])
        step = task.batch_size / statistics.median(rates[arm.name])
        print(
            f"    AT loss of {arm.name.removeprefix('b. ')}: {1e3 * alone:.2f} of {1e3 * step:.0f} ms a step "
            f"= {alone / step:.1%}   target: at most 1.5 %"
        )


def print_ladder(rates: Rates) -> None:
    """What each step is worth."""
    names = list(rates)
    labels = ["f. textbook", "+ channels last", "+ pixel store", "+ fast map", "+ precision, folding", "+ memory"]
    print("  ladder: times faster than f, and than the step before")
    for i, (name, label) in enumerate(zip(names, labels, strict=True)):
        of_f = ratio_interval(rates[name], rates[names[0]])
        of_last = ratio_interval(rates[name], rates[names[max(0, i - 1)]])
        print(f"    {label:22} {of_f.median:6.2f} {of_last.median:6.2f}")


def micro(task: Task) -> None:
    """The loss and the loader by themselves."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        name = str(memory_format).removeprefix("torch.")
        table(f"AT loss, both sides, {name}", take_turns(attention_loss.loss_of_features(memory_format)))
        table(f"AT loss, student's side, {name}", take_turns(attention_loss.loss_of_student(memory_format)))
    textbook = training_loader(training_set(task.data / "train", task.image_size), task.batch_size, WORKERS)
    ours = Ours("loader", task, teacher=False)
    loaders = {
        f"textbook, {WORKERS} workers": lambda: deque(textbook, maxlen=0),
        "ours, from the pixel store, no workers": lambda: deque(ours.batches(), maxlen=0),
    }
    table(f"Loading an epoch of {task.title}", take_turns(loaders, LOADER_ROUNDS), unit="s")


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with data/ and weights/")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="where data and caches are put")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args(arguments)

    began = time.perf_counter()
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    data = options.output.resolve()
    cifar = cifar_task(
        cifar_slice(options.shared / "data" / "cifar10-jpeg.tar.xz", data),
        options.shared / "weights" / "cifar10-jpeg-resnet56.pth",
        data / "cache-cifar",
    )
    photos = photos_task(photos_640(options.shared / "data" / "hymenoptera-photos.tar", data), data / "cache-photos")
    if "cifar" in options.only:
        compare(cifar, options.rounds)
    if "photos" in options.only:
        compare(photos, options.rounds)
    if "whole" in options.only:
        whole_run.compare(cifar, data)
    if "micro" in options.only:
        micro(cifar)
    print(f"\n{(time.perf_counter() - began) / 60:.1f} minutes in all")


if __name__ == "__main__":
    main()
