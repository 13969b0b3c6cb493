"""The run that is killed: `train_at` as it is, but for notes on what it is doing, in a byte that its killer reads.

    python -m benchmarks.torture_child SETTINGS.json PHASE_FILE

With a third argument, as in `before:fsync:3`, it kills itself right before (or after) the third call of that function.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import signal
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch

from attention_transfer import create_model, train_at
from attention_transfer.data import keeping
from attention_transfer.teacher.memory import AnswerMemory
from attention_transfer.training import epoch
from attention_transfer.training.observers import checkpoints


class Phase(IntEnum):
    """What a run is doing."""

    STARTING = 0
    PIXELS = 1
    FILLING = 2
    EPOCH = 3
    CHECKPOINT = 4


class Notes:
    """Notes the phase in the first byte of a file that is shared with the killer."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(1))
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), 1)

    def during(self, phase: Phase, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, noted while it runs."""

        @functools.wraps(function)
        def noted(*arguments: Any, **keywords: Any) -> Any:
            before, self._map[0] = self._map[0], phase
            try:
                return function(*arguments, **keywords)
            finally:
                self._map[0] = before

        return noted


def take_notes(notes: Notes) -> None:
    """Wrap the functions that the phases are."""
    keeping.fill_store = notes.during(Phase.PIXELS, keeping.fill_store)
    AnswerMemory.keep = notes.during(Phase.FILLING, AnswerMemory.keep)  # type: ignore[method-assign]
    epoch._train_step = notes.during(Phase.EPOCH, epoch._train_step)
    checkpoints.write_checkpoint = notes.during(Phase.CHECKPOINT, checkpoints.write_checkpoint)


def kill_at(when: str, name: str, count: int) -> None:
    """Kill this process before or after the `count`-th call of os.fsync, os.replace or os.write."""
    original, calls = getattr(os, name), 0

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments, **keywords)
        if calls == count and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, name, counted)


def main() -> None:
    """Run it, with everything random drawn from seeds."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    take_notes(Notes(Path(sys.argv[2])))
    if len(sys.argv) > 3:
        when, name, count = sys.argv[3].split(":")
        kill_at(when, name, int(count))
    torch.set_num_threads(1)
    torch.manual_seed(1)
    teacher = create_model("CifarResNet-8", 2)
    train_at(settings, teacher=teacher)


if __name__ == "__main__":
    main()
