"""Settings that have no effect in a run: warned of before training, and refused where the run would be another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from attention_transfer.config import Config
from attention_transfer.data.loading.loaders import own_dataset
from attention_transfer.data.sources.unlabelled import WithUnlabelled
from attention_transfer.errors import ConfigError
from attention_transfer.training.checkpointing.resume import ResumePoint
from attention_transfer.training.setup.user_parts import UserParts

logger = logging.getLogger(__name__)

_CHANGES_NOTHING = {"crop_scale": (1.0, 1.0), "rotation": 0.0, "color_jitter": 0.0}
"""Values that ask for nothing, so that nothing is missing."""


class _Use(NamedTuple):
    """Settings that are used only where others are as they must be.

    Attributes:
        settings: their names.
        is_used: whether they are.
        otherwise: why not.
    """

    settings: tuple[str, ...]
    is_used: Callable[[Config, UserParts], bool]
    otherwise: str


_USES = (
    _Use(("crop_pct",), lambda config, _: config.resize == "crop", "resize is not 'crop'"),
    _Use(("unlabelled_ratio",), lambda config, _: config.unlabelled_dir is not None, "there is no unlabelled_dir"),
    _Use(
        ("crop_scale", "rotation", "color_jitter", "augment_views", "mask_rotation"),
        lambda config, _: config.augment,
        "augment is False",
    ),
    _Use(
        ("crop_scale", "rotation", "color_jitter"),
        lambda config, _: not config.augment or "default" in config.augmentation,
        "augmentation does not have the part 'default'",
    ),
    _Use(
        ("dkd_target", "dkd_nontarget", "dkd_warmup"),
        lambda config, _: config.logit_loss == "dkd",
        "logit_loss is not 'dkd'",
    ),
    _Use(
        ("loss_warmup",),
        lambda config, _: "warmup" in (config.alpha_schedule, config.beta_schedule),
        "neither alpha_schedule nor beta_schedule is 'warmup'",
    ),
    _Use(
        ("teacher_mean", "teacher_std", "teacher_image_size"),
        lambda config, parts: config.teacher_model is not None or parts.teacher is not None,
        "there is no teacher",
    ),
    _Use(
        ("teacher_arch", "teacher_key"),
        lambda config, parts: config.teacher_model is not None and parts.teacher is None,
        "no teacher is read from a file",
    ),
)


def warn_of_idle_settings(config: Config, parts: UserParts) -> None:
    """Warn of each setting that is not at its default, and has no effect as the others are.

    Args:
        config: the settings.
        parts: what the user has passed to train_at beside them.
    """
    for settings, is_used, otherwise in _USES:
        for name in settings if not is_used(config, parts) else ():
            value = getattr(config, name)
            if value not in (Config.model_fields[name].default, _CHANGES_NOTHING.get(name)):
                logger.warning("%s is %r, but %s: it does nothing", name, value, otherwise)
    dataset = own_dataset(parts.train_loader)
    if config.augment and parts.train_loader is not None and (dataset is None or dataset.augmentation is None):
        logger.warning("augment is True, but train_loader is yours, and its images stay as it gives them")


def log_unbalanced_partners(config: Config) -> None:
    """Log that a balanced sampler does not balance the second images of mixup and cutmix.

    Args:
        config: uses sampler, mixup and cutmix.
    """
    if config.sampler == "balanced" and (config.mixup or config.cutmix):
        logger.info(
            "sampler is 'balanced': so are the images of a batch, while the second images that mixup and cutmix mix in "
            "are drawn evenly from all"
        )


def refuse_idle_settings(config: Config, parts: UserParts, *, begins: bool) -> None:
    """Refuse settings that ask for what the user's own train_loader or student does not do.

    Args:
        config: the settings.
        parts: what the user has passed to train_at beside them.
        begins: the run is a new one.

    Raises:
        ConfigError: names the setting and the remedy.
    """
    if parts.student is not None and config.weights is not None and begins:
        raise ConfigError(
            f"weights is {config.weights!r}, but train_at has a student of yours, which has weights already; leave "
            "weights out, or set init_from to a file."
        )
    if parts.train_loader is None:
        return
    dataset = own_dataset(parts.train_loader)
    mixes = dataset is not None and dataset.augmentation is not None and dataset.augmentation.mixes
    adds = dataset is not None and isinstance(dataset.source, WithUnlabelled)
    for name, is_done in (("mixup", mixes), ("cutmix", mixes), ("unlabelled_dir", adds)):
        if getattr(config, name) and not is_done:
            raise ConfigError(
                f"{name} is {getattr(config, name)!r}, but train_loader is yours, and does not do it; make the loader "
                f"with prepare_dataloaders, or leave {name} out."
            )


def warn_of_idle_loss_settings(config: Config) -> None:
    """Warn of a teacher or a kind of distillation whose weight is 0, and of a warm-up that does not end within the run.

    Args:
        config: the settings of the loss, and epochs.
    """
    if config.alpha == 0 and config.beta == 0 and config.hint == 0:
        logger.warning("alpha and beta are 0: the teacher is compared with, but teaches nothing")
    default = Config()
    of_logits = ("logit_loss", "logit_standardization", "kd_balance", "alpha_schedule", "temperature")
    chosen = [
        f"{key} is {getattr(config, key)!r}" for key in of_logits if getattr(config, key) != getattr(default, key)
    ]
    if chosen and config.alpha == 0:
        logger.warning("%s, but alpha is 0: no logits are distilled; set alpha above 0", " and ".join(chosen))
    if config.beta == 0 and config.beta_schedule != "constant":
        logger.warning("beta_schedule is %r, but beta is 0: it does nothing", config.beta_schedule)
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
