"""Training without a teacher and with nothing else either: the bound that our own loop is held to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def train_epoch(
    student: nn.Module, loader: Iterable[Iterable[Tensor]], optimizer: torch.optim.Optimizer, precision: str = "fp32"
) -> Iterator[tuple[int, float]]:
    """One epoch of cross-entropy in channels last; gives (images, loss) after each step.

    Args:
        student: trained in place.
        loader: batches that unpack to images [B, 3, H, W] and labels [B].
        optimizer: over the student's parameters.
        precision: 'bf16' runs the network under autocast, 'fp32' as it is.
    """
    student.train().to(memory_format=torch.channels_last)
    for images, labels in loader:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = student(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        yield len(labels), loss.item()
