"""Coverage: the cells of a map that show something of an image, from the pixels that do."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.features.signals import ATTENTION, Signal, TeacherOutput
from attention_transfer.networks.architecture import Size

_ENOUGH = 0.5


def covered_cells(shown: Tensor, size: Size) -> Tensor:
    """The cells of a map that show something: those at least half of whose pixels do.

    Args:
        shown: bool [B, H, W], of the pixels of images.
        size: (h, w) of the map, whose cells are taken for even blocks of the image.

    Returns:
        float32 [B, h, w]: 1 or 0.
    """
    share: Tensor = F.adaptive_avg_pool2d(shown.float().unsqueeze(1), size).squeeze(1)
    return (share >= _ENOUGH).float()


def only_where_shown(output: TeacherOutput, shown: Tensor | None) -> TeacherOutput:
    """The teacher's signals, whose maps cover no cell without image, so that they are compared nowhere else.

    Args:
        output: of the teacher; left unchanged.
        shown: bool [B, H, W], which pixels of the batch show something; None: all of them.
    """
    if shown is None:
        return output
    return TeacherOutput(
        {name: _covered(signal, shown) if _has_cells(name, signal) else signal for name, signal in output.items()}
    )


def _has_cells(name: str, signal: Signal) -> bool:
    """Whether a signal is maps [B, h, w] or features [B, C, h, w] of stages; probabilities [B, heads, N, N] are not."""
    return (
        name != ATTENTION and isinstance(signal.value, tuple) and all(stage.dim() in (3, 4) for stage in signal.value)
    )


def _covered(signal: Signal, shown: Tensor) -> Signal:
    """A signal of maps or features, with less coverage than before or as much."""
    assert isinstance(signal.value, tuple)
    cells = [covered_cells(shown.to(stage.device), (stage.shape[-2], stage.shape[-1])) for stage in signal.value]
    if signal.coverage is not None:
        cells = [torch.minimum(before, cell) for before, cell in zip(signal.coverage, cells, strict=True)]
    return replace(signal, coverage=tuple(cells))
