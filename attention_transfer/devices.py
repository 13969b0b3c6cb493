"""The device that a setting names."""

from __future__ import annotations

import torch

from attention_transfer.errors import ConfigError


def resolve_device(device: str | torch.device | None = "auto") -> torch.device:
    """The device to compute on: 'auto' (or None) is cuda, else mps, else cpu.

    Raises:
        ConfigError: the machine has no such device; the message says what it has.
    """
    if isinstance(device, torch.device):
        device = str(device)
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device is {device!r}; allowed are auto, cpu, mps, cuda and cuda:N.") from error
    count = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        has = f"{count} CUDA device{'s' if count != 1 else ''}"
        raise ConfigError(f"device is {device!r}, but this machine has {has}; use 'auto' or 'cpu'.")
    if chosen.type == "mps" and not _has_mps():
        raise ConfigError(f"device is {device!r}, but this machine has no Apple GPU; use 'auto' or 'cpu'.")
    return chosen


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
