"""What a program holds on to: anonymous memory, open files and child processes, summed over all of its processes."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil

PROC = Path("/proc")
MB = 1e6


class Use(NamedTuple):
    """What a process and all processes below it hold at a moment.

    Attributes:
        anonymous: bytes that no file backs (RssAnon of /proc/PID/status; where there is no /proc, the bytes that are
            a process's alone). Memory maps of caches are no part of it. A page that a worker has inherited counts in
            each process that still has it, so that the sum is above what the machine has to find.
        files: open files, pipes and sockets.
        children: processes below it.
    """

    anonymous: int
    files: int
    children: int


def use_of(process: psutil.Process | None = None) -> Use:
    """The use of a process, by default this one, and of all below it; one that ends meanwhile counts no more."""
    process = process or psutil.Process()
    below = process.children(recursive=True)
    tree = [process, *below]
    return Use(sum(_of(each, _anonymous) for each in tree), sum(_of(each, _files) for each in tree), len(below))


def _of(process: psutil.Process, count: Callable[[psutil.Process], int]) -> int:
    try:
        return count(process)
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return 0


def _anonymous(process: psutil.Process) -> int:
    if not PROC.is_dir():
        unshared: int = process.memory_full_info().uss
        return unshared
    for line in (PROC / str(process.pid) / "status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0  # it has ended, and waits to be collected


def shared_out(process: psutil.Process) -> int:
    """Anonymous bytes of a process and of all below it, a page that several have counted once (Pss_Anon).

    0 where the kernel does not tell (Linux does from 5.9 on). Walking the pages takes milliseconds a process.
    """
    return sum(_of(each, _pss_anon) for each in [process, *process.children(recursive=True)])


def _pss_anon(process: psutil.Process) -> int:
    rollup = PROC / str(process.pid) / "smaps_rollup"
    lines = rollup.read_text().splitlines() if rollup.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


def _files(process: psutil.Process) -> int:
    if sys.platform == "win32":
        handles: int = process.num_handles()
        return handles
    return process.num_fds()


def let_go() -> None:
    """Collect this process's garbage and hand its free memory back, so that what it holds next is what it needs.

    Without the GNU C library free memory stays, and what is seen is by that much less exact.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class Peak:
    """The greatest anonymous memory that a process and all below it hold while a `with` block runs.

    A thread looks again and again. A process that forks is better watched from another one, whose thread it does not
    inherit half of.

    Args:
        process: the one at the top.
        interval: seconds between two looks.

    Attributes:
        anonymous: bytes, as in `Use`; shared_out: as `shared_out` has it; looks: how often so far.
    """

    def __init__(self, process: psutil.Process, interval: float = 0.1) -> None:
        self.anonymous = self.shared_out = self.looks = 0
        self._process, self._interval = process, interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                self.anonymous = max(self.anonymous, use_of(self._process).anonymous)
                self.shared_out = max(self.shared_out, shared_out(self._process))
            except psutil.NoSuchProcess:
                return
            self.looks += 1
            self._over.wait(self._interval)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
