"""Gradient of the loss by the input, which shows the pixels that the output depends on, and its map."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.errors import ConfigError
from attention_transfer.features.maps import INPUT_GRADIENT, MapFunction, at_least_float32

LEAST_GRADIENT = 1e-12
"""An image whose gradient has a smaller L2 norm has no map: it is rounding error, or has no label."""

IGNORED_LABEL = -100
"""The label of an image without one, as torch's cross-entropy has it; its gradient is 0."""


def widened(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """A network of half-precision weights as a function that computes with them in float32; any other as it is.

    The weights are converted anew by each call of this function, so that their changes count.

    Args:
        network: left as it is.
    """
    tensors = itertools.chain(network.named_parameters(), network.named_buffers())
    narrow = {name: x for name, x in tensors if x.is_floating_point() and x.dtype.itemsize < torch.float32.itemsize}
    if not narrow:
        return network
    wide = {name: x.detach().float() for name, x in narrow.items()}
    return lambda images: torch.func.functional_call(network, wide, (images,))


def input_gradient(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    """J = d CE / d x of each image, Zagoruyko & Komodakis (ICLR 2017), section 3.2, for a frozen network.

    Cross-entropy is summed over the batch, so that an image's gradient does not depend on the batch's size.

    Args:
        model: a network, in the mode in which it is to be differentiated (eval for a teacher).
        images: [B, C, H, W].
        labels: [B]; -100 for an image without a label.

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
        labels: [B]; -100 for an image without a label, whose gradient is 0.
        create_graph: make the gradient itself differentiable, for a student that is trained through it.

    Returns:
        [B, C, H, W].
    """
    with torch.enable_grad():
        loss = F.cross_entropy(at_least_float32(logits), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, pixels, create_graph=create_graph)
    return gradient


def gradient_map(gradient: Tensor) -> Tensor:
    """Where the loss depends on the input: the sum over channels of J^2, pooled to a quarter of each side.

    Gradient attention of Zagoruyko & Komodakis (ICLR 2017), section 3.2, in the form of a map, so that it can be
    pooled, normalised and cached. J is first divided by its image's largest |J| (a constant), as squares of the small
    gradients of a confident network would vanish in float32; a map is the same up to a factor.

    Args:
        gradient: J, [B, C, H, W]; may have a graph of its own.

    Returns:
        [B, H // 4, W // 4], at least 1 x 1, float32 or wider, not negative; all zero where |J| < 1e-12 (L2 norm).
    """
    gradient = at_least_float32(gradient)
    largest = gradient.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
    is_known = scaled.detach().flatten(1).norm(dim=1) * largest.flatten() >= LEAST_GRADIENT
    squares = scaled.square().sum(dim=1, keepdim=True)
    quarter = max(1, gradient.shape[2] // 4), max(1, gradient.shape[3] // 4)
    pooled: Tensor = F.adaptive_avg_pool2d(squares, quarter).squeeze(1)
    return torch.where(is_known[:, None, None], pooled, 0.0)


GRADIENT = MapFunction("sum of squares of the input's gradient, pooled to a quarter", gradient_map, INPUT_GRADIENT)


def check_twice_differentiable(gradient: Tensor, network: nn.Module) -> None:
    """Check that a gradient by the input can itself be differentiated; its graph shows this without a second pass.

    Args:
        gradient: [B, C, H, W], made with create_graph.
        network: what it is the gradient of, for the message.

    Raises:
        ConfigError: an operation of the network has no second derivative.
    """
    todo = [gradient.grad_fn]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if node is None or node.name() in _WITHOUT_DERIVATIVE:
            raise ConfigError(
                f"the loss needs the gradient of {type(network).__name__} by its input, and differentiates it once "
                "more, but an operation of the network has no second derivative (fused attention kernels have none, "
                "nor have autograd functions marked once_differentiable); take a network without it, or another kind "
                "of attention."
            )
        new = [parent for parent, _ in node.next_functions if parent is not None and parent not in seen]
        seen.update(new)
        todo += new


_WITHOUT_DERIVATIVE = ("torch::autograd::NotImplemented", "torch::autograd::Error")
