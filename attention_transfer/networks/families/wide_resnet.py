"""Wide residual networks: Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146, without dropout."""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn

from attention_transfer.catalogue import canonical_network_name
from attention_transfer.networks.architecture import Architecture, Shapes
from attention_transfer.networks.families.initialisation import he_initialise
from attention_transfer.networks.families.three_stages import chain, count_blocks

BASE_WIDTH = 16


class PreActivationBlock(nn.Module):
    """B(3, 3) of the paper, batch norm and ReLU first: [B, width_in, H, W] to [B, width, H/stride, W/stride].

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input.

    Args:
        width_in: input channels.
        width: output channels.
        stride: of the first convolution.
    """

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = stride != 1 or width_in != width
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, width_in, H, W] to [B, width, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """WRN-depth-width: float images [B, 3, H, W] to logits [B, num_classes].

    Args:
        depth: 6n + 4 for n blocks in each of the three groups: 10, 16, 22, 28, 40, ...
        width: factor of the groups' 16, 32 and 64 channels.
        num_classes: number of logits.

    Raises:
        ConfigError: no n gives this depth, or the width is 0.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 10) -> None:
        super().__init__()
        canonical_network_name(f"WideResNet-{depth}-{width}")
        blocks = (depth - 4) // 6
        widths = [BASE_WIDTH * factor * width for factor in (1, 2, 4)]
        self.conv1 = nn.Conv2d(3, BASE_WIDTH, 3, padding=1, bias=False)
        self.group1 = chain(PreActivationBlock, (BASE_WIDTH, widths[0]), stride=1, blocks=blocks)
        self.group2 = chain(PreActivationBlock, (widths[0], widths[1]), stride=2, blocks=blocks)
        self.group3 = chain(PreActivationBlock, (widths[1], widths[2]), stride=2, blocks=blocks)
        self.bn = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)
        he_initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of float images [B, 3, H, W]."""
        x = self.group3(self.group2(self.group1(self.conv1(x))))
        logits: Tensor = self.fc(F.relu(self.bn(x)).mean(dim=(2, 3)))
        return logits


def _candidates(shapes: Shapes) -> list[str]:
    blocks = count_blocks(shapes, "group1")
    width = shapes.get("group1.0.conv1.weight", (0,))[0] // BASE_WIDTH
    return [f"WideResNet-{6 * blocks + 4}-{width}"] if blocks and width else []


def _from_block_names(key: str) -> str:
    """The key of RepDistiller, mdistiller and xternalhz/WideResNet-pytorch as ours: block1.layer.0 is group1.0."""
    key = re.sub(r"^block(\d)\.layer\.(\d+)\.", r"group\1.\2.", key)
    key = re.sub(r"^(group\d\.\d+)\.convShortcut\.", r"\1.shortcut.", key)
    return re.sub(r"^bn1\.", "bn.", key)


WIDE_RESNET = Architecture(
    name_pattern=r"WideResNet-(\d+)-([1-9]\d*)",
    build=WideResNet,
    taps=("group1", "group2", "group3"),
    head="fc",
    candidates=_candidates,
    spellings=(_from_block_names,),
)
