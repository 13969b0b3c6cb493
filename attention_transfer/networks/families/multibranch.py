"""MultiBranchNet: a small student of parallel branches, designed for this library.

A 3x3 stem of stride 2 leads to four stages at strides 4, 8, 16 and 32. Each begins with a 3x3 convolution
of stride 2, which sets its width (64, 128, 192, 256), followed by one, one, two and two blocks of that
width. A block runs its input through four branches of a quarter of the width each,

    1x1  |  1x1, 3x3  |  1x1, 1x5, 5x1  |  1x1, 3x3 average pool

concatenates them and fuses them by a 1x1 convolution; Efficient Channel Attention (ECA) weighs the result,
and the block's input is added: relu(x + ECA(fuse(branches(x)))). Batch norm follows every convolution, and
ReLU every one but the fusion.

    parameters       1,474,902 with 10 classes
    multiply-adds   99,786,432 for one image of 128x128

ResNet18 takes 592 million multiply-adds for that image. Branches are at least 16 channels wide and no
convolution is grouped or depthwise: either would save multiply-adds, and cost time on a CPU.

The branches follow Szegedy et al. 2016, "Rethinking the Inception Architecture", https://arxiv.org/abs/1512.00567
(figures 5 and 6); the attention is Wang et al. 2020, "ECA-Net", https://arxiv.org/abs/1910.03151
"""

from __future__ import annotations

import torch
from timm.layers.eca import EcaModule
from torch import Tensor, nn

from attention_transfer.networks.architecture import Architecture
from attention_transfer.networks.families.initialisation import he_initialise

STEM_WIDTH = 16
STAGE_WIDTHS = (64, 128, 192, 256)
STAGE_BLOCKS = (1, 1, 2, 2)


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm and ReLU: [B, width_in, H, W] to [B, width, H / stride, W / stride].

    Args:
        width_in: input channels.
        width: output channels.
        kernel: height and width of the kernel, both odd; padded so that stride 1 preserves the size of the map.
        stride: of the convolution.
    """

    def __init__(self, width_in: int, width: int, kernel: tuple[int, int] = (1, 1), stride: int = 1) -> None:
        padding = (kernel[0] // 2, kernel[1] // 2)
        super().__init__(
            nn.Conv2d(width_in, width, kernel, stride, padding, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )


class MultiBranchBlock(nn.Module):
    """Four branches, fused, weighed by ECA and added to the input: [B, C, H, W] to [B, C, H, W].

    Args:
        width: number of channels C, a multiple of 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        quarter = width // 4
        self.branches = nn.ModuleList(
            [
                ConvNormAct(width, quarter),
                nn.Sequential(ConvNormAct(width, quarter), ConvNormAct(quarter, quarter, (3, 3))),
                nn.Sequential(
                    ConvNormAct(width, quarter),
                    ConvNormAct(quarter, quarter, (1, 5)),
                    ConvNormAct(quarter, quarter, (5, 1)),
                ),
                # Pooling last, on a quarter of the channels, costs a quarter of pooling first.
                nn.Sequential(
                    ConvNormAct(width, quarter), nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
                ),
            ]
        )
        self.fuse = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attention = EcaModule(width)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H, W]."""
        branches = torch.cat([branch(x) for branch in self.branches], dim=1)
        out: Tensor = self.relu(x + self.attention(self.fuse(branches)))
        return out


class MultiBranchNet(nn.Module):
    """The network of this module's docstring: float images [B, 3, H, W] to logits [B, num_classes].

    Any H and W from 32 up; the four stages output maps of about H/4 x W/4 to H/32 x W/32.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, STEM_WIDTH, (3, 3), stride=2)
        widths = (STEM_WIDTH, *STAGE_WIDTHS)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            _stage(widths[i], widths[i + 1], blocks) for i, blocks in enumerate(STAGE_BLOCKS)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of float images [B, 3, H, W]."""
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.stem(x)))))
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


def _stage(width_in: int, width: int, blocks: int) -> nn.Sequential:
    down = ConvNormAct(width_in, width, (3, 3), stride=2)
    return nn.Sequential(down, *(MultiBranchBlock(width) for _ in range(blocks)))


MULTI_BRANCH_NET = Architecture(
    name_pattern="MultiBranchNet",
    build=MultiBranchNet,
    taps=("stage1", "stage2", "stage3", "stage4"),
    head="head",
    candidates=lambda shapes: ["MultiBranchNet"],
)
