"""ResNet for 32x32 images with projection shortcuts (option B of He et al. 2015, https://arxiv.org/abs/1512.03385).

The variant that papers on distillation use for CIFAR teachers and students: RepDistiller
(https://github.com/HobbitLong/RepDistiller) and mdistiller call these networks resnet8, resnet20, resnet56, resnet110,
resnet8x4, resnet32x4, and so do weights of other public collections. Parameter names are theirs, so that their
files load unchanged.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from attention_transfer.catalogue import canonical_network_name
from attention_transfer.networks.architecture import Architecture, Shapes
from attention_transfer.networks.families.initialisation import he_initialise
from attention_transfer.networks.families.three_stages import ThreeStages, count_blocks

STEM_WIDTHS = {1: 16, 2: 16, 4: 32}
"""Channels of the first convolution, by the factor of the stages' widths."""
STAGE_WIDTHS = (16, 32, 64)


class ProjectionBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, width_in, H, W] to [B, width, H / stride, W / stride].

    Where the shape changes, the shortcut is a 1x1 convolution with batch norm.

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
        changes = stride != 1 or width_in != width
        self.downsample = (
            nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)) if changes else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, H, W] to [B, width, H / stride, W / stride]."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class CifarResNetB(ThreeStages):
    """Three stages of 16, 32 and 64 channels, or a multiple: float images [B, 3, H, W] to logits [B, num_classes].

    Args:
        depth: layers with weights, 6n + 2 for n blocks in each stage: 8, 14, 20, 32, 44, 56, 110, ...
        width: factor of the stages' widths: 1, 2 or 4.
        num_classes: number of logits.

    Raises:
        ConfigError: no n gives this depth, or the width is another one.
    """

    def __init__(self, depth: int, width: int | None = None, num_classes: int = 10) -> None:
        width = width or 1
        canonical_network_name(_name(depth, width))
        widths = [width * channels for channels in STAGE_WIDTHS]
        super().__init__(ProjectionBlock, STEM_WIDTHS[width], widths, blocks=(depth - 2) // 6)
        self.fc = nn.Linear(widths[2], num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of float images [B, 3, H, W]."""
        logits: Tensor = self.fc(self.pooled(x))
        return logits


def _name(depth: int, width: int) -> str:
    return f"CifarResNetB-{depth}" if width == 1 else f"CifarResNetB-{depth}x{width}"


def _candidates(shapes: Shapes) -> list[str]:
    blocks = count_blocks(shapes, "layer1")
    width = shapes.get("layer1.0.conv1.weight", (0,))[0] // STAGE_WIDTHS[0]
    return [_name(6 * blocks + 2, width)] if blocks and width in STEM_WIDTHS else []


CIFAR_RESNET_B = Architecture(
    name_pattern=r"CifarResNetB-(\d+)(?:x([24]))?",
    build=CifarResNetB,
    taps=("layer1", "layer2", "layer3"),
    head="fc",
    candidates=_candidates,
)
