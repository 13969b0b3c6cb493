"""The number of cores that this process may use, which limits the number of workers."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores() -> int:
    """The cores that this process may run on, by its affinity and its container's CPU quota; at least 1.

    `taskset`, schedulers and Kubernetes give a process fewer cores than the machine has.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cgroup_quota())))


def cgroup_quota(root: Path = CGROUPS, own: Path = OWN_CGROUP) -> float:
    """The CPU quota of this process's control groups, in cores; infinite where there is no limit.

    Args:
        root: where the control groups are mounted.
        own: the file that lists those of this process.
    """
    quota = math.inf
    for folder in _groups(root, own):
        with suppress(OSError, ValueError):
            quota = min(quota, _quota_of(folder))
    return quota


def _groups(root: Path, own: Path) -> list[Path]:
    """The folders of the process's group and of those above it; version 2 has one tree, version 1 one for time."""
    folders = [root, root / "cpu"]
    with suppress(OSError):
        for line in own.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" or "cpu" in controllers.split(","):
                tree = root if number == "0" else root / "cpu"
                here = Path(path.lstrip("/"))
                folders += [tree / each for each in (here, *here.parents)]
    return folders


def _quota_of(folder: Path) -> float:
    """cpu.max of version 2 holds "quota period"; version 1 has a file for each. "max" and -1 are no limit."""
    file = folder / "cpu.max"
    if file.exists():
        quota, period = file.read_text().split()
    else:
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
