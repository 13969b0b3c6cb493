"""Stages of an unknown network, found by running it once."""

from __future__ import annotations

import logging
import weakref
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.maps import Size
from attention_transfer.modules import undisturbed, unwrapped

logger = logging.getLogger(__name__)

MOST_STAGES = 4


_found: weakref.WeakKeyDictionary[nn.Module, dict[Size, tuple[str, ...]]] = weakref.WeakKeyDictionary()


def discover_stages(model: nn.Module, images: Tensor) -> tuple[str, ...]:
    """The stages of an unknown network: the last module to output each resolution, at most the deepest four.

    Args:
        model: any convolutional network; it is run once, in eval mode.
        images: [B, 3, H, W] on the network's device.

    Returns:
        module names, shallow to deep; maps of 1x1 carry no signal and are left out.

    Raises:
        ConfigError: no module outputs [B, C, H, W] with a resolution below the image's.
    """
    network, size = unwrapped(model), (images.shape[2], images.shape[3])
    found = _found.setdefault(network, {})
    if size not in found:
        found[size] = _last_module_of_each_size(network, images[:1])
        logger.info("stages of %s, found by running it: %s", type(network).__name__, ", ".join(found[size]))
    return found[size]


def _last_module_of_each_size(network: nn.Module, image: Tensor) -> tuple[str, ...]:
    last: dict[Size, str] = {}

    def listener(name: str) -> Any:
        def listen(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                size = (output.shape[2], output.shape[3])
                last.pop(size, None)
                last[size] = name

        return listen

    with ExitStack() as hooks, undisturbed(network):
        for name, module in network.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(listener(name)).remove)
        network(image)
    sizes = [size for size in last if 1 < size[0] * size[1] < image.shape[2] * image.shape[3]]
    if not sizes:
        raise ConfigError(
            f"{type(network).__name__} has no module whose output is a map smaller than the image; "
            "name the modules to compare with the key 'layers'."
        )
    return tuple(last[size] for size in sizes[-MOST_STAGES:])
