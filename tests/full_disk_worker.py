"""Run by tests/test_disk_full.py where the disk is small, read-only or forbidden; not a test by itself.

Prints what train_at raised, and what the folder of the checkpoints then holds, as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from attention_transfer import prepare_dataloaders, train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.errors import AttentionTransferError

LEFT_FREE = 100_000


class InSecondEpoch:
    """The batches of a loader; something happens to the disk when they are asked for a second time."""

    def __init__(self, loader, happens):
        self.loader, self.happens, self.passes = loader, happens, 0

    def __iter__(self):
        self.passes += 1
        if self.passes == 2:
            self.happens()
        return iter(self.loader)


def fill(folder):
    """Leave less room than a checkpoint needs."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            file.truncate(file.tell() - LEFT_FREE)


def limit(folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (LEFT_FREE, resource.RLIM_INFINITY))


def caught(work):
    try:
        return work()["status"]
    except AttentionTransferError as error:
        return {"type": type(error).__name__, "sentence": str(error)}


def found(folder):
    """The epoch of each checkpoint that is intact; hidden files by their name alone."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        path.name: read_checkpoint(path)["epoch"] if path.suffix == ".pth" else None
        for path in files
        if path.name.endswith((".pth", ".at-draft"))
    }


def main(settings, scenario):
    save_dir, disk = Path(settings["save_dir"]), Path(settings["save_dir"]).parent
    if scenario == "limited":
        limit(disk)
    if scenario not in ("filled", "limited later", "filled with logs"):
        return {"result": caught(lambda: train_at(settings)), "files": found(save_dir)}
    train, val, _ = prepare_dataloaders(settings["data_dir"], num_workers=0, image_size=settings["image_size"])
    happens = limit if scenario == "limited later" else fill
    watched = InSecondEpoch(train, lambda: happens(disk))
    told = {"result": caught(lambda: train_at(settings, watched, val)), "files": found(save_dir)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (disk / "ballast").unlink(missing_ok=True)
    resume = {**settings, "resume": str(save_dir / "run_last.pth")}
    told["resumed"] = caught(lambda: train_at(resume, train, val))
    return told


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(main(json.loads(sys.argv[1]), sys.argv[2])))
