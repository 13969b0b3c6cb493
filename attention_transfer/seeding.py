"""The global random generators: seeding them, saving and restoring their states."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators, which initialise weights and drive dropout."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_process(seed: int, rank: int, device: torch.device, *, is_own_order: bool) -> None:
    """Seed torch's generators at the start of an epoch in several processes, so that each draws other dropout.

    A shuffled loader of the user's draws its order from torch's generator on the CPU: shares are disjoint only if all
    processes draw the same, so that with one of those only generators of GPUs differ.

    Args:
        seed: of the run and the epoch; the main process keeps it.
        rank: of the process.
        device: of the process.
        is_own_order: whether the order is that of a sampler of ours, which needs no global generator.
    """
    own = seed if rank == 0 else int(np.random.SeedSequence((seed, rank)).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(own if is_own_order else seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(own)


def random_state() -> dict[str, Any]:
    """The states of the global generators as plain data and tensors; on CUDA that of the current device.

    A process that has not used CUDA has no state there, and none is made.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    uses_cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if uses_cuda else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the global generators to states from `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    _restore_cuda(state["cuda"])


def _restore_cuda(states: list[torch.Tensor]) -> None:
    """The current device's state; of a checkpoint of version 0.1 those of all devices."""
    if not states or not torch.cuda.is_available():
        return
    if len(states) == 1:
        torch.cuda.set_rng_state(states[0])
    elif len(states) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states)
