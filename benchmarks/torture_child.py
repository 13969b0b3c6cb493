"""The run that is killed: `train_at` as it is, but for notes on what it is doing, in a byte that its killer reads.

    python -m benchmarks.torture_child SETTINGS.json PHASE_FILE

With a third argument, as in `before:fsync:3`, it kills itself right before (or after, or amid) the third call of that
function while a checkpoint is written; calls that write caches, logs or trial files do not count. As `within:filling:3`
it kills its whole group in that phase, right behind the third piece of it: some decoded images, some answers, a step.
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
from torch.nn import functional

from attention_transfer import create_model, train_at
from attention_transfer.data import pixel_cache as keeping
from attention_transfer.data.pixel_store import PixelStore
from attention_transfer.distributed import AcceleratedRuntime
from attention_transfer.teacher.cache.store import TeacherCache
from attention_transfer.training import epoch
from attention_transfer.training.callbacks import checkpoints


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
    TeacherCache.keep = notes.during(Phase.FILLING, TeacherCache.keep)  # type: ignore[method-assign]
    epoch._compute_gradients = notes.during(Phase.EPOCH, epoch._compute_gradients)
    AcceleratedRuntime.update = notes.during(Phase.EPOCH, AcceleratedRuntime.update)  # type: ignore[method-assign]
    checkpoints.write_checkpoint = notes.during(Phase.CHECKPOINT, checkpoints.write_checkpoint)


class Suicide:
    """Kills this process at a call of os.write, os.fsync or os.replace while a checkpoint is written.

    A checkpoint takes two writes, an fsync of its draft, a replace, and an fsync of its folder.

    Args:
        when: before, amid (half of the bytes are written) or after the call.
        name: of the function.
        count: which call of it, from 1 on.
    """

    def __init__(self, when: str, name: str, count: int) -> None:
        self._when, self._count = when, count
        self._is_writing = False
        self._function = getattr(os, name)
        setattr(os, name, self._call)
        self._write_checkpoint = checkpoints.write_checkpoint
        checkpoints.write_checkpoint = self._write

    def _write(self, path: Any, content: dict[str, Any]) -> None:
        self._is_writing = True
        self._write_checkpoint(path, content)
        self._is_writing = False

    def _call(self, *arguments: Any, **keywords: Any) -> Any:
        self._count -= self._is_writing
        is_it = self._is_writing and self._count == 0
        if is_it and self._when == "amid":
            descriptor, content = arguments
            self._function(descriptor, content[: len(content) // 2])
        if is_it and self._when != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        result = self._function(*arguments, **keywords)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


PIECES: dict[Phase, tuple[Any, str]] = {
    Phase.PIXELS: (PixelStore, "keep"),
    Phase.FILLING: (TeacherCache, "keep"),
    Phase.EPOCH: (AcceleratedRuntime, "update"),
}


def die_within(phase: Phase, count: int) -> None:
    """Kill the group behind a piece of a phase; where workers do the pieces, each of them counts its own.

    Args:
        phase: one of PIECES.
        count: of pieces that are done by then.
    """
    owner, name = PIECES[phase]
    function, left = getattr(owner, name), [count]

    def counted(*arguments: Any, **keywords: Any) -> Any:
        result = function(*arguments, **keywords)
        left[0] -= 1
        if left[0] == 0:
            os.killpg(0, signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def drop_out(network: torch.nn.Module) -> None:
    """Dropout before the head, from torch's global generator."""
    head: Any = network.get_submodule("linear")
    head.register_forward_pre_hook(lambda module, inputs: functional.dropout(inputs[0], 0.2, module.training))


def main() -> None:
    """Run it, with everything random drawn from seeds."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    when, name, count = sys.argv[3].split(":") if len(sys.argv) > 3 else ("", "", "0")
    if when == "within":
        die_within(Phase[name.upper()], int(count))
    take_notes(Notes(Path(sys.argv[2])))
    if when not in ("", "within"):
        Suicide(when, name, int(count))
    torch.set_num_threads(1)
    torch.manual_seed(1)
    teacher = create_model("CifarResNet-8", settings["num_classes"])
    torch.manual_seed(settings["seed"])
    student = create_model("CifarResNet-8", settings["num_classes"])
    drop_out(student)
    train_at(settings, student=student, teacher=teacher)


if __name__ == "__main__":
    main()
