"""Readouts: from a module's output, in whatever layout, to features [B, C, H, W]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from attention_transfer.errors import ConfigError


@dataclass(frozen=True)
class Readout:
    """A conversion from the output of a network's stage to features [B, C, H, W].

    Attributes:
        name: for messages and the cache key.
        shape: the shape that it takes, in words.
        function: the output, a tensor, to features [B, C, H, W], or to None if it has another shape; None: it is taken
            as it is.
        element: which tensor is read where the module puts out a tuple; None: it puts out one tensor.

    Example:
        >>> import torch
        >>> NHWC("stages.0", torch.zeros(2, 7, 5, 96)).shape
        torch.Size([2, 96, 7, 5])
    """

    name: str
    shape: str
    function: Callable[[Tensor], Tensor | None] | None = None
    element: int | None = None

    def __call__(self, module: str, output: Any) -> Tensor:
        """The features [B, C, H, W] of a module's output.

        Raises:
            ConfigError: the output has another shape; the message names the module.
        """
        features = output
        if self.element is not None:
            is_long_enough = isinstance(output, tuple | list) and len(output) > self.element
            features = output[self.element] if is_long_enough else None
        if self.function is not None and isinstance(features, Tensor):
            features = self.function(features)
        if not isinstance(features, Tensor) or features.dim() != 4:
            raise ConfigError(f"module {module!r} puts out {described(output)}; attention needs {self.shape}.")
        return features

    def of_element(self, element: int) -> Readout:
        """This readout for one tensor of a tuple, counted from 0."""
        name, shape = f"{self.name} of output {element}", f"{self.shape} as output {element} of a tuple"
        return replace(self, name=name, shape=shape, element=element)


def described(output: object) -> str:
    """A module's output in words, as in "a tensor of shape (2, 197, 64)"."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, tuple | list):
        return f"{type(output).__name__} of {', '.join(map(described, output))}" if output else "an empty tuple"
    return type(output).__name__


def tokens(height: int, width: int, prefix: int = 0) -> Readout:
    """The readout of a transformer's tokens [B, prefix + height * width, C], row by row after the prefix.

    Args:
        height: of the grid of patches.
        width: of the grid of patches.
        prefix: class, distillation and register tokens in front.
    """

    def read(output: Tensor) -> Tensor | None:
        if output.dim() != 3 or output.shape[1] != prefix + height * width:
            return None
        return output[:, prefix:].transpose(1, 2).reshape(len(output), -1, height, width)

    shape = f"[B, {prefix} + {height} x {width}, C]"
    return Readout(f"tokens of {height} x {width} behind {prefix}", shape, read)


NCHW = Readout("NCHW", "[B, C, H, W]")
NHWC = Readout("NHWC", "[B, H, W, C]", lambda output: output.permute(0, 3, 1, 2) if output.dim() == 4 else None)
