"""The initialisation of He et al. 2015, "Delving Deep into Rectifiers", https://arxiv.org/abs/1502.01852"""

from __future__ import annotations

from torch import nn


def he_initialise(model: nn.Module) -> None:
    """Draw every 2-D convolution's weights from N(0, 2 / fan_in), equation 10 of the paper, in place.

    Batch norms and the linear head have PyTorch's defaults (scale 1, shift 0; uniform in 1 / sqrt(fan_in)).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
