"""Gradient of the loss by the input, which shows the pixels that the output depends on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def input_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """J = d CE / d x of each image, Zagoruyko & Komodakis (ICLR 2017), section 3.2, for a frozen network.

    Cross-entropy is summed over the batch, so that an image's gradient does not depend on the batch's size.

    Args:
        model: in the mode in which it is to be differentiated (eval for a teacher).
        images: [B, C, H, W].
        labels: [B].

    Returns:
        [B, C, H, W], detached; empty for an empty batch.
    """
    with torch.enable_grad():
        pixels = images.detach().requires_grad_()
        return gradient_by(pixels, model(pixels), labels, create_graph=False)


def gradient_by(pixels: Tensor, logits: Tensor, labels: Tensor, *, create_graph: bool) -> Tensor:
    """The gradient of the summed cross-entropy by the pixels from which the logits were computed.

    Args:
        pixels: [B, C, H, W], requiring gradients, from which `logits` were computed.
        logits: [B, K].
        labels: [B].
        create_graph: make the gradient itself differentiable, for a student that is trained through it.

    Returns:
        [B, C, H, W].
    """
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels, create_graph=create_graph)
    return gradient
