"""ResNet for 32x32 images: He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2,
https://arxiv.org/abs/1512.03385"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from attention_transfer.catalogue import canonical_network_name
from attention_transfer.networks.architecture import Architecture, Shapes
from attention_transfer.networks.families.initialisation import he_initialise
from attention_transfer.networks.families.three_stages import ThreeStages, count_blocks


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


class CifarResNet(ThreeStages):
    """Three stages of 16, 32 and 64 channels: float images [B, 3, H, W] to logits [B, num_classes].

    Args:
        depth: layers with weights, 6n + 2 for n blocks in each stage: 20, 32, 44, 56, 110, ...
        num_classes: number of logits.

    Raises:
        ConfigError: no n gives this depth.
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        canonical_network_name(f"CifarResNet-{depth}")
        super().__init__(BasicBlock, 16, (16, 32, 64), blocks=(depth - 2) // 6)
        self.linear = nn.Linear(64, num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of float images [B, 3, H, W]."""
        logits: Tensor = self.linear(self.pooled(x))
        return logits


def _candidates(shapes: Shapes) -> list[str]:
    blocks = count_blocks(shapes, "layer1")
    return [f"CifarResNet-{6 * blocks + 2}"] if blocks else []


CIFAR_RESNET = Architecture(
    name_pattern=r"CifarResNet-(\d+)",
    build=CifarResNet,
    taps=("layer1", "layer2", "layer3"),
    head="linear",
    candidates=_candidates,
)
