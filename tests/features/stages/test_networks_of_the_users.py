"""Networks of no library: what is no map of the image is not taken for one, wherever it looks like one."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.stages.choose import choose_stages

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A transformer's block, whose softmax puts out [B, heads, N, N]."""

    def __init__(self):
        super().__init__()
        self.qkv, self.attend, self.proj = nn.Linear(24, 72), nn.Softmax(dim=-1), nn.Linear(24, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
        return x + self.proj((self.attend(q @ k.mT) @ v).transpose(1, 2).flatten(2))


class OwnTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 24, 8, 8), nn.Linear(24, 4)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x):
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Windows(nn.Module):
    """What works inside windows of 4 x 4: [4 B, 4, 4, C]."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(24, 24)

    def forward(self, x):
        parts = x.unflatten(2, (2, 4)).unflatten(1, (2, 4)).transpose(2, 3)
        parts = self.inner(parts.flatten(0, 2)).unflatten(0, (len(x), 2, 2))
        return parts.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class OwnWindows(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.windows, self.head = nn.Conv2d(3, 24, 4, 4), Windows(), nn.Linear(24, 4)

    def forward(self, x):
        return self.head(self.windows(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_a_transformer_of_no_library_is_refused_and_its_attention_matrices_are_not_taken_for_maps():
    with pytest.raises(ConfigError, match=r"'blocks' puts out 16 tokens of 'patches'.*'layers'"):
        choose_stages(OwnTransformer(), IMAGES)


def test_an_attention_matrix_that_is_named_is_refused_and_the_patches_are_read():
    network = OwnTransformer()
    with pytest.raises(ConfigError, match=r"'blocks\.1\.attend' puts out a tensor of shape \(1, 2, 16, 16\)"):
        choose_stages(network, IMAGES, ["blocks.1.attend"])
    assert choose_stages(network, IMAGES, ["patches"]).stages[0].size == (4, 4)


def test_what_a_head_makes_of_the_last_map_does_not_hide_the_stages():
    body = nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
    tail = nn.AdaptiveAvgPool2d(1), nn.Flatten(2), nn.Dropout(), nn.Flatten(), nn.Linear(8, 4)
    assert choose_stages(nn.Sequential(*body, *tail), IMAGES).names == ("1", "3")


def test_windows_of_an_image_are_not_taken_for_maps():
    network = OwnWindows()
    with pytest.raises(ConfigError, match=r"'windows\.inner' puts out a tensor of shape \(4, 4, 4, 24\)"):
        choose_stages(network, IMAGES, ["windows.inner"])
    assert choose_stages(network, IMAGES, ["windows"]).stages[0].readout.name == "NHWC"


def test_modules_can_be_named_where_the_documented_stages_cannot_be_tapped():
    torch.manual_seed(0)
    network = timm.create_model("hiera_tiny_224", num_classes=4, img_size=64).eval()
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(ConfigError, match="no module puts out stage 1"):
        choose_stages(network, images)
    assert choose_stages(network, images, ["patch_embed.proj"]).stages[0].size == (16, 16)
