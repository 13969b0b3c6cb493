"""Timing side by side: arms take turns, so that whatever else the machine does hits them alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def take_turns(arms: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, list[float]]:
    """Seconds of each call of each arm, in `rounds` rounds after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, arm in arms.items():
            began = time.perf_counter()
            arm()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def table(title: str, seconds: Mapping[str, list[float]], unit: str = "ms") -> None:
    """Print medians, and each arm's ratio to the first: below 1 is faster."""
    scale = {"ms": 1e3, "s": 1.0}[unit]
    print(f"\n{title}")
    base = next(iter(seconds.values()))
    for name, values in seconds.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(values, base, strict=True))
        print(f"  {name:44} {statistics.median(values) * scale:10.2f} {unit}   {ratio:6.3f} of the first")


def processor() -> str:
    """The processor's name, as far as it tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
