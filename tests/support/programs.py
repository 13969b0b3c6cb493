"""Python programs that tests start, signal and wait for; `start` in conftest.py begins them."""

from __future__ import annotations

import time

import psutil


def end(process, timeout=30):
    """What a process printed, what it said, and the seconds until its end."""
    began = time.monotonic()
    printed, said = process.communicate(timeout=timeout)
    return printed.split(), said, time.monotonic() - began


def all_end(pids, timeout):
    """Whether these processes are over within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.05)
    return False
