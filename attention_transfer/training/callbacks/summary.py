"""The summary of a run as JSON, written also when it fails or is stopped."""

from __future__ import annotations

import json
import platform
import time
from typing import Any

from attention_transfer.class_names import numbers_as_names
from attention_transfer.files import write_atomically
from attention_transfer.training.callbacks.base import Callback
from attention_transfer.training.checkpointing.state import EpochRecord
from attention_transfer.training.context import RunContext
from attention_transfer.versions import version

LIBRARIES = ("torch", "torchvision", "accelerate", "timm", "numpy", "pillow")


class Summary(Callback):
    """Writes the summary: config, versions, classes, images per class and split, history, results, paths, status."""

    def __init__(self) -> None:
        self._began = 0.0

    def run_started(self, run: RunContext) -> None:
        self._began = time.time()
        self._write(run, "running")

    def epoch_completed(self, run: RunContext, record: EpochRecord, is_best: bool) -> None:
        self._write(run, "running")

    def run_ended(self, run: RunContext, status: str) -> None:
        self._write(run, status)

    def _write(self, run: RunContext, status: str) -> None:
        # JSON has no NaN, which a figure of weight 0 may be: it becomes null
        content = json.loads(json.dumps(self._content(run, status)), parse_constant=lambda _: None)
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_atomically(run.paths.summary, text.encode(), setting="log_dir")

    def _content(self, run: RunContext, status: str) -> dict[str, Any]:
        paths = run.paths
        return {
            "experiment_name": paths.name,
            "status": status,
            "error": run.outcome.get("error"),
            "finished_early": run.state.finished_early,
            "config": run.config.model_dump(),
            "class_names": list(run.config.class_names or numbers_as_names(run.config.num_classes or 0)),
            "splits": run.splits,
            "images_per_class": run.images_per_class,
            "class_weights": run.state.class_weights,
            "frozen": run.state.frozen,
            "epochs_completed": run.state.epoch,
            "best_epoch": run.state.best_epoch,
            "best_accuracy": run.state.best_accuracy,
            "best_balanced_accuracy": run.state.best_balanced_accuracy,
            "test_results": run.outcome.get("test_results"),
            "test_error": run.outcome.get("test_error"),
            "history": run.state.history,
            "wall_time_seconds": time.time() - self._began,
            "precision": run.runtime.precision,
            "device": str(run.runtime.device),
            "processes": run.runtime.world_size,
            "teacher_digest": run.state.teacher_digest,
            "paths": {
                "checkpoints": [str(path) for path in paths.checkpoints()],
                "log": str(paths.log),
                "tensorboard": str(paths.tensorboard),
            },
            "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        }
