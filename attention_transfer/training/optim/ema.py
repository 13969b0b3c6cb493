"""An exponential moving average (EMA) of the student's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.checkpoint import load_weights
from attention_transfer.errors import ConfigError
from attention_transfer.modules import unwrapped


class EmaWeights:
    """timm's ModelEmaV3 of a student, with its warm-up: early in a run the decay is 1 - (1 + steps)^(-2/3), if smaller.

    Running statistics are averaged like weights. It copies the student with whatever hangs on it, so it is made
    before anything is hooked.

    Args:
        student: copied.
        decay: of the average, in (0, 1).

    Attributes:
        network: a copy of the student with the averaged weights, in eval mode.

    Raises:
        ConfigError: the student cannot be copied, or its state cannot be averaged.
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        from timm.utils import ModelEmaV3

        network = unwrapped(student)
        _check_can_be_averaged(network)
        try:
            self._ema = ModelEmaV3(network, decay=decay, use_warmup=True)
        except Exception as error:  # from whatever the copied module holds
            raise ConfigError(
                f"ema needs a copy of the student, and {type(network).__name__} cannot be copied "
                f"({type(error).__name__}: {error}); leave ema out."
            ) from error
        self.network: nn.Module = self._ema.module.requires_grad_(False)
        self._steps = 0

    def update(self, student: nn.Module) -> None:
        """Average in the student's weights, after a step of its optimizer."""
        self._steps += 1
        self._ema.update(unwrapped(student), step=self._steps)

    def state_dict(self) -> dict[str, Any]:
        """The steps done, for a checkpoint; the weights are those of `network`."""
        return {"steps": self._steps}

    def restore(self, state: dict[str, Any], weights: dict[str, Any], source: str) -> None:
        """Restore a state.

        Args:
            state: see `state_dict`.
            weights: of `network`.
            source: where they are from, for messages.
        """
        load_weights(self.network, weights, source)
        self._steps = state["steps"]


def _check_can_be_averaged(network: nn.Module) -> None:
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"ema averages tensors, but {name} in the state of {type(network).__name__} is a "
                f"{type(value).__name__}; leave ema out."
            )
        if value.dtype in (torch.float16, torch.bfloat16):
            raise ConfigError(
                f"ema would round to nothing in {value.dtype}, which {name} of {type(network).__name__} has; train "
                "float32 weights, with precision='bf16' if they are to compute in it."
            )
