"""Standardised logits: Sun et al. 2024, "Logit Standardization in Knowledge Distillation" (CVPR)."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_DEVIATION = 1e-7
"""Added to the standard deviation, as the authors' code does."""


def standardized(logits: Tensor) -> Tensor:
    """(z - mean) / (1e-7 + std) over each image's classes, algorithm 1 of Sun et al. 2024.

    The student may then have logits of any mean and scale: only how they are related is compared. The standard
    deviation is the sample's (divided by K - 1), as in the authors' code.

    Args:
        logits: [B, K], float32 or wider.

    Returns:
        [B, K]; zeros, without a gradient, for an image whose logits are all equal.

    Example:
        >>> standardized(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.,  0.,  1.]])
    """
    deviation, mean = torch.std_mean(logits, dim=1, keepdim=True)
    return torch.where(deviation > 0, (logits - mean) / (LEAST_DEVIATION + deviation), 0.0)
