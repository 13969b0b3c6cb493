"""Warnings, before training, of settings of the loss that have no effect in this run."""

from __future__ import annotations

import logging

from attention_transfer.config import Config

logger = logging.getLogger(__name__)


def warn_of_idle_loss_settings(config: Config) -> None:
    """Warn of a teacher or a kind of distillation whose weight is 0, and of a warm-up that does not end within the run.

    Args:
        config: the settings of the loss, and epochs.
    """
    if config.alpha == 0 and config.beta == 0:
        logger.warning("alpha and beta are 0: the teacher is compared with, but teaches nothing")
    default = Config()
    of_logits = ("logit_loss", "logit_standardization", "kd_balance")
    chosen = [
        f"{key} is {getattr(config, key)!r}" for key in of_logits if getattr(config, key) != getattr(default, key)
    ]
    if chosen and config.alpha == 0:
        logger.warning("%s, but alpha is 0: no logits are distilled; set alpha above 0", " and ".join(chosen))
    if config.logit_loss == "dkd" and config.alpha > 0 and config.dkd_warmup > config.epochs:
        logger.warning(
            "dkd_warmup is %g, but the run has %d epochs: the weight of DKD reaches only %.0f %% of alpha; lower "
            "dkd_warmup for the whole of it",
            config.dkd_warmup, config.epochs, 100 * config.epochs / config.dkd_warmup,
        )  # fmt: skip
