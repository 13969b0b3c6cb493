"""The processes that load images."""

from __future__ import annotations

import signal

import torch


def prepare_worker(worker_id: int) -> None:
    """Make a worker use one thread, and leave Ctrl-C to the main process, which ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
