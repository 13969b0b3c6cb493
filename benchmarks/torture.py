"""`make torture`: a run is killed a hundred times, in chains, and ends as if nothing had happened.

Each chain is one run, with augmentation, workers and both caches, whose whole process group is killed with SIGKILL five
to ten times, each time in a phase that is drawn: while images are decoded into the store, while the teacher's answers
are written, inside an epoch, while a checkpoint is written. After the last kill it runs to its end; weights, history
and all scalars of TensorBoard must then equal those of a run that was left alone, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attention_transfer.cache.folder import entries
from attention_transfer.cache.records import Records
from attention_transfer.checkpoint import read_checkpoint
from benchmarks.torture_child import Phase

SHARED = Path(__file__).resolve().parents[2] / "shared"
AIMED = (Phase.PIXELS, Phase.FILLING, Phase.EPOCH, Phase.CHECKPOINT)
LONGEST_DELAY = {Phase.PIXELS: 0.05, Phase.FILLING: 0.001, Phase.EPOCH: 0.02, Phase.CHECKPOINT: 0.004}
"""Seconds within which the kill falls after its phase was seen."""


def settings_of(folder: Path, data: Path, seed: int = 0) -> dict[str, Any]:
    """A short run that does all there is to do."""
    return {
        "model": "CifarResNet-8",
        "data_dir": str(data),
        "image_size": 32,
        "num_workers": 1,
        "batch_size": 16,
        "augment": True,
        "augment_views": 2,
        "seed": seed,
        "epochs": 4,
        "lr": 0.05,
        "step_size": 2,
        "device": "cpu",
        "precision": "fp32",
        "teacher_precision": "fp32",
        "pixel_cache": "on",
        "teacher_cache": "on",
        "print_freq": 5,
        "save_freq": 2,
        "figure_freq": 1000,
        "save_minutes": 0.003,
        "cache_dir": str(folder / "cache"),
        "save_dir": str(folder / "checkpoints"),
        "log_dir": str(folder / "logs"),
        "experiment_name": "run",
        "resume": "auto",
    }


class Child:
    """One start of the run, in a process group of its own."""

    def __init__(self, folder: Path, data: Path, *extra: str, seed: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "settings.json"
        settings.write_text(json.dumps(settings_of(folder, data, seed)))
        self._phase = folder / "phase"
        self._phase.unlink(missing_ok=True)
        self._log = (folder / "output.txt").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.torture_child", str(settings), str(self._phase), *extra],
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def phase(self) -> Phase:
        """What it is doing now."""
        raw = self._phase.read_bytes() if self._phase.exists() else b""
        return Phase(raw[0]) if raw else Phase.STARTING

    def kill_in(self, phase: Phase, delay: float, seconds: float) -> Phase | None:
        """Kill the group some time after it was seen in a phase; the phase it was killed in, None if it ended first."""
        deadline = time.monotonic() + seconds
        while self.phase() != phase and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0002)
        time.sleep(delay)
        now = self.phase()
        if self.process.poll() is not None:
            return None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()
        return now

    def finish(self) -> int:
        """Let it run to its end; its exit code."""
        code = self.process.wait(600)
        self._log.close()
        return code


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run came to, without what clocks say."""
    content = read_checkpoint(folder / "checkpoints" / "run_final.pth")
    clocks = ("seconds", "images_per_second")
    history = [{k: v for k, v in record.items() if k not in clocks} for record in content["training"]["history"]]
    events = EventAccumulator(str(folder / "logs" / "run"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("run/seconds", "run/images"))]
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
    weights = {k: torch.as_tensor(v).numpy().tobytes() for k, v in content["model_state_dict"].items()}
    return {"weights": weights, "history": history, "scalars": scalars}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The parts in which two outcomes differ."""
    return [part for part in one if one[part] != other[part]]


def chain(folder: Path, data: Path, kills: int, killed: Counter[Phase], rng: random.Random) -> int:
    """Kill a run again and again; how often it was."""
    done = 0
    for _ in range(kills):
        phase = min(AIMED, key=lambda aimed: (killed[aimed], rng.random()))
        if phase == Phase.PIXELS and not _has_pixels_left(folder):
            phase = min(AIMED[1:], key=lambda aimed: (killed[aimed], rng.random()))
        child = Child(folder, data)
        hit = child.kill_in(phase, rng.uniform(0, LONGEST_DELAY[phase]), 60)
        if hit is None:
            break
        killed[hit] += 1
        done += 1
        print(f"  {folder.name}: kill {done} while {hit.name.lower()} (aimed at {phase.name.lower()})", flush=True)
    return done


def _has_pixels_left(folder: Path) -> bool:
    stores = [entry for entry in entries(folder / "cache") if entry.kind == "pixels"]
    return len(stores) < 3 or not all(Records(entry.path, entry.identity).present().all() for entry in stores)


def photos_of(shared: Path, output: Path) -> Path:
    """The photos that the run is trained on."""
    data = output / "photos"
    if not data.exists():
        with tarfile.open(shared / "data" / "hymenoptera-photos.tar") as tar:
            tar.extractall(output / "photos.draft", filter="data")
        (output / "photos.draft").rename(data)
    return data


def torture(output: Path, data: Path, kills: int, seed: int) -> bool:
    """Chains until there were `kills` kills; whether every one ended as the run that was left alone."""
    rng, killed = random.Random(seed), Counter[Phase]()
    shutil.rmtree(output / "alone", ignore_errors=True)
    if Child(output / "alone", data).finish() != 0:
        raise SystemExit(f"the run that is left alone fails; see {output / 'alone' / 'output.txt'}")
    alone, good, chains = outcome(output / "alone"), True, 0
    while sum(killed.values()) < kills:
        chains += 1
        folder = output / f"chain-{chains}"
        shutil.rmtree(folder, ignore_errors=True)
        count = chain(folder, data, min(rng.randint(5, 10), kills), killed, rng)
        code = Child(folder, data).finish()
        wrong = ["exit code"] if code else differences(alone, outcome(folder))
        good = good and not wrong
        print(f"{folder.name}: {count} kills, {'differs in ' + ', '.join(wrong) if wrong else 'equal'}", flush=True)
        if not wrong:
            shutil.rmtree(folder)
    print(f"\n{sum(killed.values())} kills in {chains} chains")
    for phase in Phase:
        print(f"  {phase.name.lower():12} {killed[phase]:4}  {'#' * killed[phase]}")
    print("every run ended as the one that was left alone" if good else "NOT every run ended as the one left alone")
    return good


def main() -> None:
    """Torture; exit code 1 where a run ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with data/hymenoptera-photos.tar")
    parser.add_argument("--output", type=Path, default=Path("runs/torture"))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    data = photos_of(options.shared, output)
    sys.exit(0 if torture(output, data, options.kills, options.seed) else 1)


if __name__ == "__main__":
    main()
