"""Utilities for any `nn.Module`: its wrappers, mode, device and number format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attention_transfer.errors import ConfigError


def like_weights(images: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """Float images [B, C, H, W] in the dtype of a network's parameters; images and network may be float64."""
    weights = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    return images if weights is None else images.to(weights.dtype)


def handed_over(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor [...] on a device; through page-locked memory to a GPU, as only then the host does not wait for it."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def constants(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """Numbers [n] of a tensor's device and dtype, written there: a copy from the CPU would make the host wait."""
    return torch.cat([like.new_full((1,), value) for value in values])


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


def refuse_data_parallel(student: nn.Module) -> None:
    """Refuse a student that runs as copies in several threads: they would overwrite each other's features.

    Raises:
        ConfigError: it is, or holds, an nn.DataParallel over several devices; names the remedy.
    """
    for name, module in student.named_modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            where = f"its module {name!r}" if name else "it"
            raise ConfigError(
                f"the student cannot be trained: {where} is an nn.DataParallel over {len(module.device_ids)} devices, "
                "whose copies overwrite each other's features. Pass the network without it, and start a process for "
                "each device with accelerate launch or torchrun: train_at then wraps it in DistributedDataParallel, as "
                "a loop of your own should."
            )


def has_hooks(module: nn.Module) -> bool:
    """Whether something listens to a module's forward pass, or changes it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """Run a network in eval mode without gradients inside; afterwards every module's mode is restored.

    In eval mode no buffer changes either, so the network is unchanged.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_modules(network: nn.Module, names: Sequence[str]) -> None:
    """Refuse names that no module of a network has.

    Raises:
        ConfigError: names the first, and the modules that there are.
    """
    modules = dict(network.named_modules())
    if missing := [name for name in names if name not in modules]:
        known = ", ".join(name for name in modules if name and name.count(".") < 2)
        raise ConfigError(f"{type(network).__name__} has no module {missing[0]!r}; it has {known}.")


def count_logits(logits: object) -> int:
    """The number of classes K of a network's logits [B, K].

    Raises:
        ConfigError: the network's output has another shape, or a single logit.
    """
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        what = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"the network must put out logits [B, K], but puts out {what}.")
    if logits.shape[1] < 2:
        raise ConfigError("the network puts out a single logit; a classifier needs one for each of at least 2 classes.")
    return logits.shape[1]
