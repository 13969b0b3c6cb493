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


def like_weights(images: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Float images in the number format of a network's parameters, which may be float64 on either side."""
    weights = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    return images if weights is None else images.to(weights.dtype)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a network's parameters are; the CPU for a network without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
