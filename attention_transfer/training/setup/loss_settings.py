"""Warnings, before training, of settings of the loss that have no effect in this run."""

from __future__ import annotations

import logging

from attention_transfer.config import Config
from attention_transfer.training.checkpointing.resume import ResumePoint

logger = logging.getLogger(__name__)


def warn_of_idle_loss_settings(config: Config) -> None:
    """Warn of a teacher or a kind of distillation whose weight is 0, and of a warm-up that does not end within the run.

    Args:
        config: the settings of the loss, and epochs.
    """
    if config.alpha == 0 and config.beta == 0 and config.hint == 0:
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
    changing = [key for key in ("alpha_schedule", "beta_schedule") if getattr(config, key) != "constant"]
    if changing and config.best_by == "loss":
        logger.warning(
            "best_by is 'loss', but %s is %r: the validation losses of different epochs are weighted differently",
            changing[0], getattr(config, changing[0]),
        )  # fmt: skip


def log_stretched_schedules(point: ResumePoint, config: Config) -> None:
    """Log that a resumed run of another number of epochs goes on with other weights than it would have had.

    Args:
        point: what is resumed.
        config: the resolved settings, whose schedules are the checkpoint's.
    """
    if point.checkpoint is None or not point.goes_on(config):
        return
    before = point.checkpoint["config"].get("epochs", config.epochs)
    changing = [key for key in ("alpha_schedule", "beta_schedule") if getattr(config, key) != "constant"]
    if changing and before != config.epochs:
        logger.warning(
            "epochs is %d, and was %d: %s %s stretched over the new number from here on",
            config.epochs, before, " and ".join(f"{key} {getattr(config, key)!r}" for key in changing),
            "are" if len(changing) > 1 else "is",
        )  # fmt: skip
