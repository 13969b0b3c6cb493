"""The runs of the study, and the file that has a row for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attention_transfer import (
    create_at_config,
    create_model,
    evaluate_model,
    load_model,
    prepare_dataloaders,
    train_at,
    validate,
)
from attention_transfer.checkpoint import read_plain
from attention_transfer.errors import CheckpointError, DataError
from attention_transfer.files import write_atomically
from benchmarks.pretrained.weights import HALF, IMAGENET_CLASS, NETWORK

ARMS: dict[str, dict[str, Any]] = {
    "none": {"alpha": 0.0, "beta": 0.0},
    "AT": {"alpha": 0.0, "beta": 1e3},
    "KD": {"alpha": 1.0, "beta": 0.0},
    "AT + KD": {"alpha": 1.0, "beta": 1e3},
}
"""Loss settings of each arm; the first is what the others are compared with."""

RECIPE: dict[str, Any] = {
    "batch_size": 16,
    "resize": "crop",
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
TEACHER: dict[str, Any] = {"model": NETWORK, "mean": HALF, "std": HALF, "lr": 1e-4}
STUDENT: dict[str, Any] = {"model": "MultiBranchNet", "augment_views": 8, "lr": 1e-3}
WARMUP = {"teacher": 1, "student": 2}
"""Epochs in which the learning rate rises, where a run has more of them."""


class Study(NamedTuple):
    """Runs of one recipe, and the file with a row for each that is finished.

    Attributes:
        photos: train/ and test/ with class folders.
        weights: a state_dict of the teacher's network for the photos' classes.
        rows: the JSON-lines file; the runs' own files are in a folder beside it.
        epochs: of a student.
        teacher_epochs: of fine-tuning the teacher.
        image_size: in pixels.
    """

    photos: Path
    weights: Path
    rows: Path
    epochs: int = 30
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
            DataError: the network is trained, but could not be tested.
            SystemExit: the run was stopped.
        """
        done = self.finished()
        if name in done:
            return done[name]
        # of a run that is finished already, nothing is left but its test
        results = train_at(self._config(name, settings))
        if results["status"] != "finished":
            raise SystemExit(f"{name} was stopped by {results['stopped_by']}; the same command goes on with it.")
        tested, seconds = results["test_results"], [record["seconds"] for record in results["training_history"]]
        if tested is None:
            raise DataError(f"{name} has no test results: {results['test_error']}")
        row = {
            "test_accuracy": tested["accuracy"],
            "test_balanced_accuracy": tested["balanced_accuracy"],
            "test_images": tested["samples"],
            "val_accuracy": results["best_accuracy"],
            "seconds_an_epoch": sum(seconds) / len(seconds),
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
        loader = self._test_photos()
        networks = [load_model(path, "cpu")["model"] for path in (student, teacher)]
        figures = validate(networks[0], networks[1], loader, "cpu", {**ARMS["AT + KD"], "teacher_precision": "fp32"})
        return {"attention": figures["attention"], "kd": figures["kd"]}

    def untuned(self) -> dict[str, float]:
        """How the weights do on the test photos before any training."""
        network = create_model(NETWORK, len(IMAGENET_CLASS))
        network.load_state_dict(read_plain(self.weights))
        tested = evaluate_model(network, self._test_photos(mean=HALF, std=HALF))
        return {f"test_{key}": tested[key] for key in ("accuracy", "balanced_accuracy")}

    def _test_photos(self, **normalisation: Any) -> Any:
        size, resize = self.image_size, RECIPE["resize"]
        return prepare_dataloaders(self.photos, 16, num_workers=0, image_size=size, resize=resize, **normalisation)[2]

    def train_teacher(self) -> dict[str, Any]:
        """Fine-tune the pretrained network; its row."""
        epochs = _epochs(self.teacher_epochs, WARMUP["teacher"])
        return self.run("teacher", {**TEACHER, **epochs, "weights": str(self.weights)})

    def train_students(self, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
        """The rows of each arm, in the order of the seeds."""
        epochs = _epochs(self.epochs, WARMUP["student"])
        rows: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for seed in seeds:
            for arm, weights in ARMS.items():
                taught = any(weights.values())
                teacher = {"teacher_model": str(self.best("teacher")), "teacher_cache": "on"} if taught else {}
                settings = {**STUDENT, **weights, **teacher, **epochs, "seed": seed}
                rows[arm].append(self.run(f"{arm.replace(' ', '')}-seed{seed}", settings))
        return rows


def _epochs(epochs: int, warmup: int) -> dict[str, int]:
    return {"epochs": epochs, "warmup_epochs": min(warmup, epochs - 1)}
