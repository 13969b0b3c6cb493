"""torchvision's ResNet18 and ResNet50, with its pretrained weights by name.

He et al. 2015, "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, WeightsEnum, resnet18, resnet50

from attention_transfer.errors import ConfigError
from attention_transfer.networks.architecture import Architecture


def published_weights(published: type[WeightsEnum], name: str) -> dict[str, Tensor]:
    """The state_dict (tensors [...] by key) of torchvision's weights `name`, from the torch hub folder or downloaded.

    Args:
        published: torchvision's table of weights for one network.
        name: an entry of it, such as 'IMAGENET1K_V1' or 'DEFAULT', in any case.

    Raises:
        ConfigError: the table has no such entry, or the file can be neither read nor downloaded; the
            message then says where to put it by hand.
    """
    if name.upper() not in published.__members__:
        known = ", ".join(published.__members__)
        raise ConfigError(f"weights is {name!r}, which torchvision does not have here; it has {known}.")
    weights = published[name.upper()]
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1])
    try:
        return dict(weights.get_state_dict(check_hash=True, map_location="cpu", weights_only=True))
    # A damaged file may raise half a dozen unrelated types, and the remedy is the same.
    except Exception as error:
        raise ConfigError(
            f"torchvision's weights {published.__name__}.{weights.name} could not be loaded ({error}). "
            f"Download {weights.url} where there is a network, and put it here as {file}."
        ) from error


def _family(name: str, build: Callable[..., nn.Module], published: type[WeightsEnum]) -> Architecture:
    return Architecture(
        name_pattern=name,
        build=build,
        taps=("layer1", "layer2", "layer3", "layer4"),
        head="fc",
        candidates=lambda shapes: [name],
        pretrained=partial(published_weights, published),
        pretrained_names=tuple(published.__members__),
    )


RESNET18 = _family("ResNet18", resnet18, ResNet18_Weights)
RESNET50 = _family("ResNet50", resnet50, ResNet50_Weights)
