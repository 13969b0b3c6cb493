"""What the CIFAR families share: a chain of blocks, and a ResNet of three stages for 32x32 images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.networks.architecture import Shapes

Block = Callable[[int, int, int], nn.Module]
"""(input channels, output channels, stride of the first convolution) to a block."""


def chain(block: Block, widths: tuple[int, int], stride: int, blocks: int) -> nn.Sequential:
    """A stage: the first block changes width and resolution, the rest keep both.

    Args:
        block: of the family.
        widths: input and output channels.
        stride: of the first block.
        blocks: their number, at least 1.
    """
    rest = (block(widths[1], widths[1], 1) for _ in range(blocks - 1))
    return nn.Sequential(block(*widths, stride), *rest)


def count_blocks(shapes: Shapes, stage: str) -> int:
    """The blocks of a stage in a state_dict of these shapes; 0 if it has no such stage."""
    return sum(re.fullmatch(rf"{stage}\.\d+\.conv1\.weight", key) is not None for key in shapes)


class ThreeStages(nn.Module):
    """The body of a CIFAR ResNet (He et al. 2015, section 4.2): a 3x3 convolution and three stages, without a head.

    Args:
        block: of the family.
        stem: channels of the first convolution.
        widths: channels of the stages.
        blocks: in each stage.
    """

    def __init__(self, block: Block, stem: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = chain(block, (stem, widths[0]), stride=1, blocks=blocks)
        self.layer2 = chain(block, (widths[0], widths[1]), stride=2, blocks=blocks)
        self.layer3 = chain(block, (widths[1], widths[2]), stride=2, blocks=blocks)

    def pooled(self, x: Tensor) -> Tensor:
        """The mean over all positions of the last stage [B, C], of float images [B, 3, H, W]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return x.mean(dim=(2, 3))
