"""What holds for any `nn.Module`: its wrappers, its mode, its device and its number format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def like_weights(images: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Float images in the number format of a network's parameters, which may be float64 on either side."""
    weights = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    return images if weights is None else images.to(weights.dtype)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a network's parameters are; the CPU for a network without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own network inside DistributedDataParallel, DataParallel or torch.compile wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None) or _parallel_inner(model)
        if inner is None:
            return model
        model = inner


def _parallel_inner(model: nn.Module) -> nn.Module | None:
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else None


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the network is in eval mode without gradients; after, every module is in the mode it was in.

    In eval mode no buffer changes either, so the network is left as it was found.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode
