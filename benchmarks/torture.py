"""`make torture`: a run is killed a hundred times, in chains, and ends as if nothing had happened.

Each chain is one run, with dropout, augmentation, workers and both caches, whose whole process group is killed with
SIGKILL five to ten times, each time in the phase that was killed least: while images are decoded into the store, while
the teacher's answers are written, inside an epoch, while a checkpoint is written. After the last kill it runs to its
end; weights, history and all scalars of TensorBoard must then equal those of a run that was left alone, bit for bit.

A process is stopped before it is killed, so that the phase that is counted is the one that it is killed in. A chain
that breaks off before its fifth kill (its run was over) must end equal, and its kills do not count. From a hundred
kills on each phase must have had fifteen.
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
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from attention_transfer.cache.folder import entries
from attention_transfer.cache.records import Records
from attention_transfer.checkpoint import read_checkpoint
from benchmarks.torture_child import Phase

FEWEST, MOST = 5, 10
"""Kills in a chain."""
FULL_SIZE, LEAST_IN_A_PHASE = 100, 15
"""From so many kills on, each phase must have had so many."""

SHARED = Path(__file__).resolve().parents[2] / "shared"
AIMED = (Phase.PIXELS, Phase.FILLING, Phase.EPOCH, Phase.CHECKPOINT)
LONGEST_DELAY = {Phase.PIXELS: 0.05, Phase.FILLING: 0.001, Phase.EPOCH: 0.02, Phase.CHECKPOINT: 0.004}
"""Seconds within which the kill falls after its phase was seen."""
STORES = {Phase.PIXELS: ("pixels", 3), Phase.FILLING: ("maps", 2)}
"""What is filled in a phase, and the number of its files: of train, val and test; test is not taught."""


class Process(Protocol):
    """What is asked of a process, as `subprocess.Popen` has it."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""


def settings_of(folder: Path, data: Path, **changes: Any) -> dict[str, Any]:
    """A short run that does all there is to do."""
    training = data / "train" if (data / "train").is_dir() else data
    return {
        "model": "CifarResNet-8",
        "num_classes": sum(each.is_dir() for each in training.iterdir()),
        "data_dir": str(data),
        "image_size": 32,
        "num_workers": 1,
        "batch_size": 16,
        "augment": True,
        "augment_views": 2,
        "seed": 0,
        "epochs": 4,
        "lr": 0.05,
        "step_size": 2,
        "device": "cpu",
        "precision": "fp32",
        "teacher_precision": "fp32",
        "pixel_cache": "on",
        "teacher_cache": "on",
        "print_freq": 2,
        "save_freq": 2,
        "figure_freq": 1000,
        "save_minutes": 0.003,
        "cache_dir": str(folder / "cache"),
        "save_dir": str(folder / "checkpoints"),
        "log_dir": str(folder / "logs"),
        "experiment_name": "run",
        "resume": "auto",
        **changes,
    }


def fresh(words: Sequence[str], log: Path) -> Process:
    """A program in a fresh interpreter and a group of its own, whose output goes to the end of a file."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, *words],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


class Child:
    """One start of the run, in a process group of its own.

    Args:
        folder: of all that the run writes.
        data: it is trained on.
        extra: words for the child; see benchmarks.torture_child.
        start: starts a program, as `fresh` does.
        changes: settings that differ from those of `settings_of`.
    """

    def __init__(
        self, folder: Path, data: Path, *extra: str, start: Callable[[Sequence[str], Path], Process] = fresh,
        **changes: Any,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        settings = folder / "settings.json"
        settings.write_text(json.dumps(settings_of(folder, data, **changes)))
        self._phase = folder / "phase"
        self._phase.unlink(missing_ok=True)
        words = ["-m", "benchmarks.torture_child", str(settings), str(self._phase), *extra]
        self.process = start(words, folder / "output.txt")

    def phase(self) -> Phase:
        """What it is doing now."""
        raw = self._phase.read_bytes() if self._phase.exists() else b""
        return Phase(raw[0]) if raw else Phase.STARTING

    def kill_in(self, phase: Phase, delay: float, seconds: float) -> Phase | None:
        """Kill the group while it is in a phase, up to `delay` after that was seen.

        Returns:
            the phase that it was killed in: another one where this one was not met within `seconds`. None where it
            ended first.
        """
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            is_late = time.monotonic() > deadline
            if is_late or self.phase() == phase:
                time.sleep(delay)
                now = self._stopped()
                if now is not None and (is_late or now == phase):
                    os.killpg(self.process.pid, signal.SIGKILL)
                    self.process.wait()
                    return now
                delay /= 2  # the phase was over by then
                if now is not None:
                    os.killpg(self.process.pid, signal.SIGCONT)
            time.sleep(0.0002)
        return None

    def _stopped(self) -> Phase | None:
        """Stop the group; what it is doing while it stands still, None where it ended first."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        how = os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return self.phase() if how is not None and how.si_code == os.CLD_STOPPED else None

    def finish(self) -> int:
        """Let it run to its end; its exit code."""
        return self.process.wait(600)


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


def chain(
    folder: Path, data: Path, kills: int, killed: Counter[Phase], rng: random.Random, **changes: Any
) -> Counter[Phase]:
    """Kill a run again and again, each time in the phase that was killed least; of equals in the one that comes first.

    Args:
        folder: of the run.
        data: it is trained on.
        kills: at most; fewer where the run is over.
        killed: kills of other chains.
        rng: draws delays.
        changes: as for `Child`.

    Returns:
        the kills of this chain.
    """
    done = Counter[Phase]()
    while done.total() < kills:
        possible = [phase for phase in AIMED if phase not in STORES or _has_left(folder, *STORES[phase])]
        phase = min(possible, key=lambda aimed: killed[aimed] + done[aimed])
        hit = Child(folder, data, **changes).kill_in(phase, rng.uniform(0, LONGEST_DELAY[phase]), 60)
        if hit is None:
            break
        done[hit] += 1
        aim = "" if hit == phase else f" (aimed at {phase.name.lower()})"
        print(f"  {folder.name}: kill {done.total()} while {hit.name.lower()}{aim}", flush=True)
    return done


def _has_left(folder: Path, kind: str, files: int) -> bool:
    """Whether there is something left to fill in the files of a kind."""
    stores = [entry for entry in entries(folder / "cache") if entry.kind == kind]
    return len(stores) < files or not all(Records(entry.path, entry.identity).present().all() for entry in stores)


def shortfalls(killed: Counter[Phase], kills: int) -> list[str]:
    """What the counted kills lack of what was asked for, in sentences."""
    lacking = []
    if killed.total() < kills:
        lacking.append(f"{killed.total()} kills in chains of {FEWEST} to {MOST}, and {kills} were asked for")
    if kills >= FULL_SIZE:
        few = [phase for phase in AIMED if killed[phase] < LEAST_IN_A_PHASE]
        lacking += [f"{killed[phase]} kills in {phase.name.lower()}, fewer than {LEAST_IN_A_PHASE}" for phase in few]
    return lacking


def photos_of(shared: Path, output: Path) -> Path:
    """The photos that the run is trained on."""
    data = output / "photos"
    if not data.exists():
        shutil.unpack_archive(shared / "data" / "hymenoptera-photos.tar", output / "photos.draft")
        (output / "photos.draft").rename(data)
    return data


def torture(output: Path, data: Path, kills: int, seed: int) -> bool:
    """Chains until there were `kills` kills; whether there were as many as asked for, and every run ended as it should.

    Chains that break off early are made up for by others, within reason.
    """
    rng, killed = random.Random(seed), Counter[Phase]()
    shutil.rmtree(output / "alone", ignore_errors=True)
    if Child(output / "alone", data).finish() != 0:
        raise SystemExit(f"the run that is left alone fails; see {output / 'alone' / 'output.txt'}")
    alone, unequal, chains = outcome(output / "alone"), 0, 0
    most_chains = 2 * -(-kills // FEWEST)
    while killed.total() < kills and chains < most_chains:
        chains += 1
        folder = output / f"chain-{chains}"
        shutil.rmtree(folder, ignore_errors=True)
        done = chain(folder, data, rng.randint(FEWEST, MOST), killed, rng)
        code = Child(folder, data).finish()
        wrong = ["exit code"] if code else differences(alone, outcome(folder))
        unequal += bool(wrong)
        counts = done.total() >= FEWEST
        print(
            f"{folder.name}: {done.total()} kills{'' if counts else ' (broke off: not counted)'}, "
            f"{'differs in ' + ', '.join(wrong) if wrong else 'equal'}",
            flush=True,
        )
        if counts:
            killed += done
        if not wrong:
            shutil.rmtree(folder)
    print(f"\n{killed.total()} kills in {chains} chains")
    for phase in Phase:
        print(f"  {phase.name.lower():12} {killed[phase]:4}  {'#' * killed[phase]}")
    lacking = shortfalls(killed, kills)
    print(f"{unequal} runs did NOT end as the one left alone" if unequal else "every run ended as the one left alone")
    for sentence in lacking:
        print(f"NOT enough: {sentence}")
    return not unequal and not lacking


def main() -> None:
    """Torture; exit code 1 where a run ended otherwise, or there were too few kills."""
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
