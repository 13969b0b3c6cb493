"""`attention-transfer train`."""

from __future__ import annotations

import os
import shlex
import time
from typing import Annotated, Any

from cyclopts import Parameter

from attention_transfer.cli.flags import takes_settings
from attention_transfer.cli.tables import facts, percent
from attention_transfer.config import resolve_config

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}
"""The exit code of a stopped run, by signal: 128 + its number, as in shells."""


@takes_settings()
def train(
    *,
    config: Annotated[
        str | None, Parameter(help="a YAML file of settings, such as batch_size: 64; flags win over it")
    ] = None,
    **settings: Any,
) -> int:
    """Train a student, with or without a teacher.

    A teacher, by cross-entropy alone:
    attention-transfer train --data-dir photos --model ResNet18

    A student that looks where the teacher looks:
    attention-transfer train --data-dir photos --teacher-model teacher.pth

    Settings from a file, except one of them:
    attention-transfer train --config run.yaml --lr 0.05

    Resuming after Ctrl-C, or after a crash:
    attention-transfer train --resume checkpoints/NAME_last.pth
    attention-transfer train --config run.yaml --experiment-name NAME --resume auto

    After each setting follow its allowed values and its default.
    """
    if config is not None:
        from attention_transfer.cli.settings_file import read_settings

        settings = {**read_settings(config), **settings}
    resolved = resolve_config(settings)

    from attention_transfer.training.train import train_at

    began = time.perf_counter()
    result = train_at(resolved)
    if os.environ.get("RANK", "0") == "0":
        summarise(result, time.perf_counter() - began)
    return EXIT_CODES[result["stopped_by"]] if result["status"] == "stopped" else 0


def summarise(result: dict[str, Any], seconds: float) -> None:
    """Print a run's results and the paths of its files; for a stopped run also how to resume."""
    from attention_transfer.training.checkpointing.paths import RunPaths

    config = resolve_config(result["config"])
    files, history, test = RunPaths(config), result["training_history"], result["test_results"]
    balanced = result["best_balanced_accuracy"]
    measured = "validation" if history and "val_accuracy" in history[-1] else "training"
    print()
    facts(
        f"{files.name}: {result['status']}",
        {
            "best accuracy": f"{percent(result['best_accuracy'])} ({measured})"
            if history
            else "no epoch was completed",
            **(
                {}
                if balanced is None
                else {"its balanced accuracy": f"{percent(balanced)} (mean recall of the classes)"}
            ),
            **({"test accuracy": f"{percent(test['accuracy'])} on {test['samples']} images"} if test else {}),
            **({"balanced test accuracy": percent(test["balanced_accuracy"])} if test else {}),
            **({"test": f"not measured: {result['test_error']}"} if result["test_error"] else {}),
            "epochs": f"{len(history)} of {config.epochs}",
            **({"finished early": result["finished_early"]} if result["finished_early"] else {}),
            "seconds": f"{seconds:.1f}",
            "checkpoints": ", ".join(str(path) for path in files.checkpoints()) or "none",
            "log": files.log,
            "summary": files.summary,
            "TensorBoard": f"tensorboard --logdir {shlex.quote(config.log_dir)}",
        },
    )
    if result["status"] == "stopped" and files.last.exists():
        print(f"\nGo on with: attention-transfer train --resume {shlex.quote(str(files.last))}")
