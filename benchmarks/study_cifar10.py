"""Is attention transfer worth it? CIFAR-10, ResNet-56 to ResNet-20, several seeds, each arm with the same recipe.

    python -m benchmarks.study_cifar10 --archive cifar10-jpeg.tar.xz --teacher cifar10-jpeg-resnet56.pth

draws 10,000 training images and 1,000 others to validate (seeded, stratified), trains without a teacher, with AT
and with AT + KD, tests on all 10,000 test images, and prints mean and spread over the seeds. With

    --study memory --images 5000 --epochs 10 --seeds 0 1

it asks instead whether a teacher that is remembered teaches as well as one that runs: without a teacher, with one on
new views, on 8 views that come back, and on warped maps; differences are those of runs of equal seed. It can be stopped
and started again: finished runs are kept, an unfinished one goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from attention_transfer import create_at_config, train_at

ARMS: dict[str, dict[str, Any]] = {
    "no teacher": {},
    "AT": {"beta": 1e3},
    "AT + KD": {"beta": 1e3, "alpha": 0.5},
    "no teacher, K=8": {"augment_views": 8},
    "AT, K=8": {"beta": 1e3, "augment_views": 8},
    "AT, warp": {"beta": 1e3, "augment_views": "warp"},
}
STUDIES = {
    "worth": ("no teacher", "AT", "AT + KD"),
    "memory": ("AT", "no teacher", "no teacher, K=8", "AT, K=8", "AT, warp"),
}
"""Arms of each question; the first is what the others are compared with."""

RECIPE: dict[str, Any] = {
    "model": "CifarResNet-20",
    "image_size": 32,
    "batch_size": 64,
    "lr": 0.1,
    "gamma": 0.1,
    "augment": True,
    "crop_scale": (0.6, 1.0),
    "rotation": 0.0,
    "color_jitter": 0.0,
    "figure_freq": 1000,
    "print_freq": 1000,
    "save_freq": 1000,
}


def draw(archive: Path, output: Path, images: int) -> Path:
    """An ImageFolder of `images` training images, 1,000 of the others to validate, and all test images."""
    data, whole = output / f"data-{images}", output / "whole"
    if data.exists():
        return data
    if not whole.exists():
        shutil.unpack_archive(archive, whole)
    root = next(path.parent for path in whole.rglob("train") if path.is_dir())
    draft = output / f"data-{images}.draft"
    for folder in sorted((root / "train").iterdir()):
        files = sorted(folder.iterdir())
        order = np.random.default_rng(0).permutation(len(files))
        classes = len(list((root / "train").iterdir()))
        link(draft / "train" / folder.name, [files[i] for i in order[: images // classes]])
        link(draft / "val" / folder.name, [files[i] for i in order[-1000 // classes :]])
    for folder in sorted((root / "test").iterdir()):
        link(draft / "test" / folder.name, sorted(folder.iterdir()))
    draft.rename(data)
    return data


def link(folder: Path, files: list[Path]) -> None:
    """Hard links to files in a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        target = folder / file.name
        if not target.exists():
            target.hardlink_to(file)


def run(arm: str, seed: int, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run, or what is left of it; its summary."""
    has_teacher = "beta" in ARMS[arm]
    name = f"{arm.replace(' ', '')}-{options.images}-{options.epochs}-seed{seed}"
    logs, checkpoints = options.output / "logs", options.output / "checkpoints"
    summary = logs / f"{name}_summary.json"
    if not summary.exists() or json.loads(summary.read_text())["status"] != "finished":
        train_at(
            create_at_config(
                **{**RECIPE, **ARMS[arm]},
                data_dir=str(data),
                teacher_model=str(options.teacher) if has_teacher else None,
                teacher_arch="CifarResNet-56" if has_teacher else None,
                seed=seed,
                epochs=options.epochs,
                step_size=max(1, round(options.epochs * 2 / 3)),
                precision=options.precision,
                num_workers=options.num_workers,
                experiment_name=name,
                save_dir=str(checkpoints),
                log_dir=str(logs),
                cache_dir=str(options.output / "cache"),
                resume="auto",
            )
        )
    content: dict[str, Any] = json.loads(summary.read_text())
    return content


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def difference(one: list[float], other: list[float]) -> str:
    """The mean difference of runs of equal seed, and its standard error."""
    pairs = [mine - theirs for mine, theirs in zip(one, other, strict=True)]
    error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else float("nan")
    return f"{statistics.mean(pairs):+.2f} ± {error:.2f}"


def main() -> None:
    """Train what is not yet trained, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help="tar of CIFAR-10 as JPEG files, train/ and test/")
    parser.add_argument("--teacher", type=Path, required=True, help="state_dict of a CIFAR ResNet-56")
    parser.add_argument("--output", type=Path, default=Path("runs/cifar10"), help="where everything is kept")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--study", choices=list(STUDIES), default="worth")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--num-workers", type=int, default=1)
    options = parser.parse_args()

    data = draw(options.archive, options.output, options.images)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in STUDIES[options.study]}
    for seed in options.seeds:
        for arm, summaries in runs.items():
            summaries.append(run(arm, seed, data, options))

    accuracies = {arm: [100 * of["test_results"]["accuracy"] for of in summaries] for arm, summaries in runs.items()}
    base, *_ = accuracies
    print(f"\n{'arm':16} {'test accuracy %':>16} {f'less that of {base}':>26} {'seconds an epoch':>18}   of each seed")
    for arm, accuracy in accuracies.items():
        seconds = statistics.median(record["seconds"] for summary in runs[arm] for record in summary["history"])
        each = ", ".join(f"{value:.2f}" for value in accuracy)
        less = difference(accuracy, accuracies[base])
        print(f"{arm:16} {spread(accuracy):>16} {less:>26} {seconds:>18.1f}   {each}")


if __name__ == "__main__":
    main()
