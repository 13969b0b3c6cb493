"""Run in processes of their own by tests of files, which are killed or run out of disk; not a test by itself."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from pathlib import Path

from attention_transfer.errors import WriteError
from attention_transfer.files import write_atomically

STEPS = ("write", "fsync file", "replace", "fsync folder")


def watch(step_seen):
    """Have `step_seen(name, call)` make each system call that matters, instead of the functions of os."""
    write, fsync, replace = os.write, os.fsync, os.replace

    def fsync_seen(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        return step_seen(f"fsync {kind}", lambda: fsync(descriptor))

    os.write = lambda descriptor, content: step_seen("write", lambda: write(descriptor, content))
    os.fsync = fsync_seen
    os.replace = lambda source, target: step_seen("replace", lambda: replace(source, target))


def kill_at(step, moment):
    """Kill this process before, after or in the midst of the first call of a kind."""
    write = os.write

    def step_seen(name, call):
        if name == step and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = call()
        if name == step and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def half(descriptor, content):
        write(descriptor, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    watch(step_seen)
    if moment == "amidst":
        os.write = half


def kill_writers(folder):
    """For each step and moment, in a folder of its own: a child replaces a checkpoint of epoch 1, and is killed."""
    import torch

    from attention_transfer.checkpoint import write_checkpoint

    def content(epoch):
        weights = {"weight": torch.full((1000, 10), float(epoch))}
        return {
            "card": None, "model_state_dict": weights, "config": {}, "epoch": epoch, "best_accuracy": 0.5,
            "class_names": None, "training": None,
        }  # fmt: skip

    signals = {}
    for case in [(step, moment) for step in STEPS for moment in ("before", "after")] + [("write", "amidst")]:
        name = " ".join(case)
        write_checkpoint(folder / name / "m.pth", content(1))
        child = os.fork()
        if not child:
            kill_at(*case)
            write_checkpoint(folder / name / "m.pth", content(2))
            os._exit(0)
        signals[name] = os.WTERMSIG(os.waitpid(child, 0)[1])
    return signals


def steps_of_a_write(folder):
    seen = []

    def step_seen(name, call):
        result = call()
        seen.append(name)
        return result

    watch(step_seen)
    write_atomically(folder / "m.pth", b"one", b"two", setting="save_dir")
    return seen


def refused(folder):
    """The sentence of a write of 100,000 bytes that fails, and what the folder holds afterwards."""
    try:
        write_atomically(folder / "m.pth", bytes(100_000), setting="save_dir")
    except WriteError as error:
        return {"sentence": str(error), "files": {path.name: path.stat().st_size for path in folder.iterdir()}}
    return {"sentence": "", "files": {}}


if __name__ == "__main__":
    task = {"kill": kill_writers, "steps": steps_of_a_write, "refused": refused}[sys.argv[1]]
    print(json.dumps(task(Path(sys.argv[2]))))
