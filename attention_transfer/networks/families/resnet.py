"""torchvision's ResNet18 and ResNet50, with its pretrained weights by name.

He et al. 2015, "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, WeightsEnum, resnet18, resnet50

from attention_transfer.networks.architecture import Architecture
from attention_transfer.networks.published import published_weights


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
