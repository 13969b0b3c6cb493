"""Run by tests/test_disk_full.py where disks are small, read-only or forbidden; not a test by itself.

Prints, for each scenario, what train_at raised and what the folder of the checkpoints then holds, as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from attention_transfer import prepare_dataloaders, train_at
from attention_transfer.checkpoint import read_checkpoint

LEFT_FREE = 100_000


class InSecondEpoch:
    """The batches of a loader; something happens to the disk when they are asked for after the first epoch."""

    def __init__(self, loader, happens, first_file):
        self.loader, self.happens, self.first_file = loader, happens, first_file

    def __iter__(self):
        if self.first_file.exists():
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


def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def caught(work):
    try:
        return work()["status"]
    except Exception as error:
        return {"type": type(error).__name__, "sentence": str(error)}


def found(folder):
    """The epoch of each checkpoint that is intact, and the names of drafts."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        path.name: read_checkpoint(path)["epoch"] if path.suffix == ".pth" else None
        for path in files
        if path.name.endswith((".pth", ".at-draft"))
    }


def before(settings, most=resource.RLIM_INFINITY):
    """What train_at says to a disk that it finds."""
    limit(most)
    told = {"result": caught(lambda: train_at(settings)), "files": found(Path(settings["save_dir"]))}
    limit(resource.RLIM_INFINITY)
    return told


def meanwhile(settings, happens):
    """What it says when the disk changes in the second epoch, and how the run goes on when the disk is well again."""
    save_dir = Path(settings["save_dir"])
    train, val, _ = prepare_dataloaders(settings["data_dir"], num_workers=0, image_size=settings["image_size"])
    watched = InSecondEpoch(train, lambda: happens(save_dir.parent), save_dir / "run_last.pth")
    told = {"result": caught(lambda: train_at(settings, watched, val)), "files": found(save_dir)}
    limit(resource.RLIM_INFINITY)
    (save_dir.parent / "ballast").unlink(missing_ok=True)
    watched.happens = lambda: None
    resume = {**settings, "resume": str(save_dir / "run_last.pth")}
    return {**told, "resumed": caught(lambda: train_at(resume, watched, val))}


def main(disks, scenarios, settings):
    told = {}
    for name in scenarios:
        here = {**settings, "save_dir": str(disks / name / "checkpoints")}
        if name in ("filled with logs", "read-only"):
            here["log_dir"] = str(disks / name / "logs")
        else:
            here["log_dir"] = str(disks / "logs" / name)
        if name == "limited meanwhile":
            # the logs have no room either then
            told[name] = meanwhile(here, lambda _: limit(LEFT_FREE))
        elif name.startswith("filled"):
            told[name] = meanwhile(here, fill)
        else:
            told[name] = before(here, LEFT_FREE if name == "limited" else resource.RLIM_INFINITY)
    return told


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))))
