"""A whole run from empty caches, ours and the textbook's: decoding, trials of precision and filling included."""

from __future__ import annotations

import shutil
import time
from collections import deque
from pathlib import Path

import torch

from attention_transfer import create_model, train_at
from benchmarks.arms.ours.ours import BETA, EPOCHS, LR, Task, step_ratio
from benchmarks.arms.ours.textbook import WithFeatures, train_epoch, training_loader, training_set

VIEWS = (4, "warp")
WORKERS = 2
"""Of the textbook's loader: the fastest on two cores, see the comparison of arms."""


def compare(task: Task, output: Path) -> None:
    """Print the wall time of each."""
    print(f"\n## A whole run of {EPOCHS} epochs from empty caches: {task.title}")
    textbook = _textbook(task, WORKERS)
    print(f"  {f'f. textbook, {WORKERS} workers':34} {textbook:8.1f} s", flush=True)
    for views in VIEWS:
        seconds = _ours(task, output / "whole", views)
        r = step_ratio(output / "whole" / "cache", task.student)
        print(
            f"  {f'ours, augment_views={views}':34} {seconds:8.1f} s   f / ours {textbook / seconds:.2f}   "
            f"target: at least 1.9 r = {1.9 * r:.2f}"
        )


def _textbook(task: Task, num_workers: int) -> float:
    torch.manual_seed(0)
    began = time.perf_counter()
    student, teacher = WithFeatures(create_model(task.student, task.classes)), WithFeatures(task.teacher())
    optimizer = torch.optim.SGD(student.parameters(), LR, momentum=0.9, weight_decay=5e-4)
    loader = training_loader(training_set(task.data / "train", task.image_size), task.batch_size, num_workers)
    for _ in range(EPOCHS):
        deque(train_epoch(student, teacher, loader, optimizer, BETA), maxlen=0)
    return time.perf_counter() - began


def _ours(task: Task, folder: Path, views: int | str) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    config = task.config(
        augment_views=views,
        cache_dir=str(folder / "cache"),
        save_dir=str(folder / "checkpoints"),
        log_dir=str(folder / "logs"),
    )
    began = time.perf_counter()
    train_at(config, teacher=task.teacher())
    return time.perf_counter() - began
