"""What this process holds: open files, locks, mapped files, children, threads, handlers and hooks."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import torch

SHARED_MEMORY = "/dev/shm/"


def held(folder, *networks):
    """A snapshot, to be compared with a later one; of mapped files only those below `folder` and shared memory."""
    library = logging.getLogger("attention_transfer")
    return {
        "open files": Counter(_open_files()),
        "mapped files": Counter(_mapped_files(folder)),
        "locks": Counter(_locks()),
        "children": sorted(child.pid for child in psutil.Process().children(recursive=True)),
        "threads": sorted(str(thread) for thread in threading.enumerate()),
        "log handlers": [*library.handlers, *logging.getLogger().handlers, library.level],
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "hooks": [_hooks_of(module) for network in networks for module in network.modules()],
        "hooks on every module": len(torch.nn.modules.module._global_forward_hooks),
    }


def _open_files():
    for entry in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):  # the listing's own
            yield str(entry.readlink())


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
    return (
        len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks),
        len(module._backward_pre_hooks), len(module._state_dict_hooks), len(module._load_state_dict_pre_hooks),
    )  # fmt: skip
