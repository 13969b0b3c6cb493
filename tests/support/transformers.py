"""Small transformers of the usual libraries, with random weights that are not symmetrical in any way."""

from __future__ import annotations

import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer

SMALL = {"embed_dim": 48, "num_heads": 3, "depth": 4, "num_classes": 10}

NAMES = {
    "vit_tiny_patch16_224": 16,
    "deit_tiny_distilled_patch16_224": 16,
    "vit_small_patch14_reg4_dinov2": 14,
    "vit_small_patch16_dinov3": 16,
    "eva02_tiny_patch14_224": 14,
    "vit_base_patch16_reg4_gap_256": 16,
    "vit_base_patch16_siglip_224": 16,
    "vit_base_patch16_rope_224": 16,
}
"""timm's, with the side of a patch in their names: class, distillation and register tokens, rotary positions, norms."""


def transformer(name, size=None, **changes):
    """A network by name, of 3 x 5 patches unless a size is given, with every parameter drawn anew."""
    patch = NAMES[name]
    size = size or (3 * patch, 5 * patch)
    torch.manual_seed(0)
    return shaken(timm.create_model(name, img_size=size, **{**SMALL, **changes})), size


def torchvisions(size=64, **changes):
    torch.manual_seed(0)
    dims = {"patch_size": 16, "num_layers": 4, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64, "num_classes": 10}
    return shaken(VisionTransformer(image_size=size, **{**dims, **changes}))


def shaken(network: nn.Module) -> nn.Module:
    """The network with noise on all parameters: some start at 0 or 1, and would hide a mistake."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def tiny_vit(seed=0, **changes):
    """A ViT that learns from 32x32 images on 4 x 4 patches."""
    torch.manual_seed(seed)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "depth": 4, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", **{**settings, **changes})
