"""Python programs that tests start, signal and wait for; `start` in conftest.py begins them."""

from __future__ import annotations

import time

import psutil

BEFORE_IT_HANGS = 120
"""Seconds, on a machine as busy as may be."""


def end(process, timeout=BEFORE_IT_HANGS):
    """What a process printed, and what it said."""
    printed, said = process.communicate(timeout=timeout)
    return printed.split(), said


def all_end(pids, timeout=BEFORE_IT_HANGS):
    """Whether these processes come to their end, as opposed to hanging."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.05)
    return False
