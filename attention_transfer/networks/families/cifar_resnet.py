"""ResNet for 32x32 images: He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2,
https://arxiv.org/abs/1512.03385"""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn

from attention_transfer.catalogue import canonical_network_name
from attention_transfer.networks.architecture import Architecture, Shapes
from attention_transfer.networks.families.initialisation import he_initialise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, width_in, H, W] to [B, width, H / stride, W / stride].

    The shortcut has no parameters. Where the shape changes it takes every second pixel and pads with
    channels of zeros, half of them before and half after (option A of section 3.3).

    Args:
        width_in: input channels.
        width: output channels.
        stride: of the first convolution.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.padding = (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, H, W] to [B, width, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels: float images [B, 3, H, W] to logits [B, num_classes].

    Args:
        depth: layers with weights, 6n + 2 for n blocks in each stage: 20, 32, 44, 56, 110, ...
        num_classes: number of logits.

    Raises:
        ConfigError: no n gives this depth.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        canonical_network_name(f"CifarResNet-{depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, stride=1, blocks=blocks)
        self.layer2 = _stage(16, 32, stride=2, blocks=blocks)
        self.layer3 = _stage(32, 64, stride=2, blocks=blocks)
        self.linear = nn.Linear(64, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of float images [B, 3, H, W]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(width_in: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    rest = (BasicBlock(width, width, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(width_in, width, stride), *rest)


def _candidates(shapes: Shapes) -> list[str]:
    blocks = sum(re.fullmatch(r"layer1\.\d+\.conv1\.weight", key) is not None for key in shapes)
    return [f"CifarResNet-{6 * blocks + 2}"] if blocks else []


CIFAR_RESNET = Architecture(
    name_pattern=r"CifarResNet-(\d+)",
    build=CifarResNet,
    taps=("layer1", "layer2", "layer3"),
    head="linear",
    candidates=_candidates,
)
