"""The frozen teacher's weights in the number format that they are multiplied in, converted once.

Under autocast every pass converts the float32 weights of each convolution and linear layer anew: for a ResNet50 these
are 23.5 million numbers, read and written before the first image is looked at. A frozen network can be converted
beforehand, to the very same numbers.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from attention_transfer.features.stages.stage import Stage
from attention_transfer.features.taps import Taps
from attention_transfer.modules import device_of, has_hooks, undisturbed
from attention_transfer.networks.registry import network_name

logger = logging.getLogger(__name__)

PROBED_IMAGES = 8
_WEIGHTS = ("weight", "bias", "in_proj_weight", "in_proj_bias")
_CONVERTED = frozenset(
    {
        nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
        NonDynamicallyQuantizableLinear, nn.MultiheadAttention,
    }
)  # fmt: skip
"""Modules whose weights autocast converts in every pass; a subclass may do something else with them."""

Autocast = Callable[[], AbstractContextManager[Any]]


def convert_weights(
    network: nn.Module, images: Tensor, stages: Sequence[Stage], autocast: Autocast, *, is_own: bool
) -> nn.Module:
    """A frozen network with its weights in autocast's number format, wherever autocast would convert them in each pass.

    The outputs are checked on images: on a CPU they must be the same to the last bit, and on other devices, whose
    kernels may change with a weight's address, to the rounding of the number format. Otherwise the network stays as it
    is, which is logged.

    Args:
        network: unwrapped, in eval mode or not; never called with gradients.
        images: [B, 3, H, W] as the network sees them, on its device; the first eight are used.
        stages: tapped modules.
        autocast: makes the context that gives the number format.
        is_own: the network belongs to the caller, and may be converted in place; else a copy is.

    Returns:
        the network; a copy if it is not the caller's own; the network as it was where there is nothing to convert.
    """
    dtype = _autocast_dtype(autocast, device_of(network))
    if dtype is None or not any(_convertible(network)):
        return network
    probe, originals = images[:PROBED_IMAGES], []
    try:
        mine = network if is_own else copy.deepcopy(network)
        before, originals = _outputs(mine, probe, stages, autocast), _convertible(mine)
        _convert(originals, dtype)
        difference = _difference(before, _outputs(mine, probe, stages, autocast))
    except Exception as error:
        # a user's network may fail in any way when it is copied, or look at its own weights
        return _as_it_was(network, originals, f"{type(error).__name__}: {error}".splitlines()[0])
    tolerance = 0.0 if probe.device.type == "cpu" else torch.finfo(dtype).eps
    if not difference <= tolerance:
        return _as_it_was(network, originals, f"other weights change what it puts out by {difference:.1e}")
    return mine


def _autocast_dtype(autocast: Autocast, device: torch.device) -> torch.dtype | None:
    with autocast():
        return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


Original = tuple[nn.Module, str, nn.Parameter]


def _convertible(network: nn.Module) -> list[Original]:
    return [
        (module, name, parameter)
        for module in network.modules()
        if type(module) in _CONVERTED and not has_hooks(module)
        for name, parameter in module.named_parameters(recurse=False)
        if name in _WEIGHTS and parameter.dtype == torch.float32
    ]


def _convert(originals: Sequence[Original], dtype: torch.dtype) -> None:
    for module, name, parameter in originals:
        setattr(module, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))


def _as_it_was(network: nn.Module, originals: Sequence[Original], reason: str) -> nn.Module:
    for module, name, parameter in originals:
        setattr(module, name, parameter)
    logger.info("teacher %s: its weights are converted in every pass (%s)", network_name(network), reason)
    return network


def _outputs(network: nn.Module, images: Tensor, stages: Sequence[Stage], autocast: Autocast) -> list[Tensor]:
    with undisturbed(network), autocast(), Taps(network, stages) as taps:
        logits = taps.run(images)
    assert logits is not None
    return [logits, *taps.features]


def _difference(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The greatest difference, relative to the greatest number of its tensor; NaN where a difference is."""
    pairs = [(x.float(), y.float()) for x, y in zip(before, after, strict=True)]
    each = [(x - y).abs().max() / x.abs().max().clamp(min=1e-12) for x, y in pairs]
    return float(torch.stack(each).max())
