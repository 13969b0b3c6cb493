"""Processes that load images: what happens when one is killed."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from attention_transfer import DataError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint


def test_a_worker_that_is_killed_ends_the_run_within_a_minute_with_the_last_checkpoint_intact(settings, tmp_path):
    student, killed = create_model("CifarResNet-8", 10), []
    before = {child.pid for child in psutil.Process().children()}  # of other tests

    def kill_a_worker(module, arguments, output):
        last = tmp_path / "checkpoints" / "run_last.pth"
        if module.training and last.exists() and not killed:
            # forked from this process, unlike multiprocessing's own helpers
            forked = [child for child in psutil.Process().children() if child.cmdline() == psutil.Process().cmdline()]
            os.kill(next(child.pid for child in forked if child.pid not in before), signal.SIGKILL)
            killed.append(time.monotonic())

    student.register_forward_hook(kill_a_worker)
    with pytest.raises(DataError, match=r"a process that loads images is gone .*num_workers"):
        train_at({**settings, "num_workers": 2, "epochs": 200, "batch_size": 8}, student=student)
    assert time.monotonic() - killed[0] < 60
    assert read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["epoch"] >= 1
