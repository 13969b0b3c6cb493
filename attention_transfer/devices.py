"""The device that a setting names."""

from __future__ import annotations

import torch

from attention_transfer.errors import ConfigError


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device to compute on: 'auto' is cuda, else mps, else cpu.

    Raises:
        ConfigError: the machine has no such device; the message says what it has.
    """
    if isinstance(device, torch.device):
        device = str(device)
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    chosen = torch.device(device)
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        has = f"{count} CUDA device{'s' if count != 1 else ''}"
        raise ConfigError(f"device is {device!r}, but this machine has {has}; use 'auto' or 'cpu'.")
    if chosen.type == "mps" and not _has_mps():
        raise ConfigError(f"device is {device!r}, but this machine has no Apple GPU; use 'auto' or 'cpu'.")
    return chosen


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a network's parameters are; the CPU for a network without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
