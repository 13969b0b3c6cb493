"""What this process holds: open files, locks, mapped files, children, threads, handlers and hooks."""

from __future__ import annotations

import logging
import os
import re
import signal
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import torch

SHARED_MEMORY = "/dev/shm/"


def held(folder, *networks):
    """A snapshot, as counts of whatever is held; of mapped files only those below `folder` and shared memory."""
    library = logging.getLogger("attention_transfer")
    return {
        "open files": Counter(_open_files()),
        "mapped files": Counter(_mapped_files(folder)),
        "locks": Counter(_locks()),
        "children": Counter(child.pid for child in psutil.Process().children(recursive=True)),
        "threads": Counter((thread.name, thread.ident) for thread in threading.enumerate()),
        "log handlers": Counter([*library.handlers, *logging.getLogger().handlers, library.level]),
        "signal handlers": Counter((number, signal.getsignal(number)) for number in signal.valid_signals()),
        "hooks": Counter(hook for network in networks for module in network.modules() for hook in _hooks_of(module)),
        "hooks on every module": Counter(torch.nn.modules.module._global_forward_hooks),
    }


def added(before, after):
    """What a later snapshot has and an earlier one has not; what other tests have left may end at any time."""
    return {what: more for what in before if (more := after[what] - before[what])}


def _open_files():
    # torch opens such files to see whether it can when a worker is gone, and may be interrupted by its own signal
    # handler before it has a handle to close; none of ours is called so
    of_torch = re.compile(rf"{re.escape(tempfile.gettempdir())}/tmp\w{{8}}")
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):  # the listing's own
            path = str(entry.readlink())
            if not of_torch.fullmatch(path):
                yield path


def _mapped_files(folder):
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if f"/{path}".startswith((str(folder), SHARED_MEMORY)):
            yield path


def _locks():
    """Kind, type and file of each lock of this process."""
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[4] == str(os.getpid()):
            yield (*words[1:4], words[5])


def _hooks_of(module):
    for kind, hooks in vars(module).items():
        if kind.endswith("_hooks"):
            yield from ((type(module).__name__, kind, number) for number in hooks)
