"""Cross-entropy with the labels, with smoothed labels and weighted classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attention_transfer.errors import ConfigError

Mixed = tuple[Tensor, Tensor]
"""Of images that are mixed of two: labels [B] of the second, and shares [B] of the first."""


class CrossEntropy:
    """Cross-entropy of logits and labels, mean over the batch, as `torch.nn.functional.cross_entropy` defines it.

    With weights w and smoothing e, of a batch of labels y and class probabilities p:

        sum over images of [-(1 - e) w_y log p_y - e / K sum over classes c of w_c log p_c] / sum over images of w_y

    Of an image that is mixed of two, the summands of both labels are weighted by its shares, above and below.

    Label smoothing: Szegedy et al. 2016, section 7.

    Args:
        label_smoothing: e, in [0, 1).
        class_weights: w, K numbers above 0 in the order of the classes; None: all are 1.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        self.label_smoothing = label_smoothing
        self._weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self._by_device: dict[torch.device, Tensor] = {}

    @property
    def is_weighted(self) -> bool:
        """Whether classes have weights, so that the mean is over their sum and not over the images."""
        return self._weights is not None

    def __call__(
        self, logits: Tensor, labels: Tensor, mixed: Mixed | None = None, *, are_all_labelled: bool = True
    ) -> Tensor:
        """The mean over a batch: a scalar [], not negative.

        Args:
            logits: [B, K], float32.
            labels: int64 [B], in 0 .. K - 1; -100 for an image without a label, which is left out.
            mixed: of images that are mixed of two, the labels [B] of the second and the shares [B] of the first.
            are_all_labelled: whether every image has a label; if not, the mean over none is 0.

        Raises:
            ConfigError: the number of weights is not K.
        """
        weights = self._on(logits)
        if weights is not None and len(weights) != logits.shape[1]:
            raise ConfigError(
                f"class_weights has {len(weights)} numbers, but the network tells {logits.shape[1]} classes apart; "
                "give one for each, in the order of the classes."
            )
        settings: dict[str, Any] = {"weight": weights, "label_smoothing": self.label_smoothing}
        if mixed is None and are_all_labelled:
            return F.cross_entropy(logits, labels, **settings)
        weight = self.sum_of_weights(labels, mixed).clamp_min(torch.finfo(torch.float32).tiny)
        if mixed is None:
            return F.cross_entropy(logits, labels, **settings, reduction="sum") / weight
        partners, shares = mixed
        own, others = (F.cross_entropy(logits, y, **settings, reduction="none") for y in (labels, partners))
        return (shares * own + (1 - shares) * others).sum() / weight

    def sum_of_weights(self, labels: Tensor, mixed: Mixed | None = None) -> Tensor:
        """The sum over a batch of its labels' weights, a scalar []: what the mean divides by.

        Args:
            labels: int64 [B]; -100 for an image without a label.
            mixed: as for the mean.
        """
        is_labelled, weights = labels >= 0, self._on(labels)
        if weights is None:
            return is_labelled.sum(dtype=torch.float32)
        # a label beyond the classes is refused elsewhere, with its own sentence
        own = weights[labels.clamp(0, len(weights) - 1)]
        if mixed is not None:
            partners, shares = mixed
            own = shares * own + (1 - shares) * weights[partners.clamp(0, len(weights) - 1)]
        return (own * is_labelled).sum()

    def _on(self, like: Tensor) -> Tensor | None:
        if self._weights is None:
            return None
        if like.device not in self._by_device:
            self._by_device[like.device] = self._weights.to(like.device)
        return self._by_device[like.device]


PLAIN = CrossEntropy()
"""Neither smoothed nor weighted: what validation and evaluation measure, so that recipes can be compared."""
