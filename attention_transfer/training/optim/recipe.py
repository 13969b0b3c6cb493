"""Checks of the recipe before anything else is done: settings that contradict each other, or do nothing."""

from __future__ import annotations

from collections.abc import Sequence

from attention_transfer.config import Config
from attention_transfer.errors import ConfigError
from attention_transfer.training.optim.optimizers import check_optimizer
from attention_transfer.training.optim.schedules import SMOOTH

_OF_OPTIMIZER = ("optimizer", "nesterov", "weight_decay_norms")
_OF_SCHEDULE = ("schedule", "milestones", "warmup_epochs", "min_lr")
_SCHEDULES_WITH = {
    "step_size": ("step",),
    "milestones": ("multistep",),
    "gamma": ("step", "multistep"),
    "min_lr": SMOOTH,
}


def check_recipe(config: Config, *, own_optimizer: bool = False, own_scheduler: bool = False) -> None:
    """Refuse a recipe that contradicts itself.

    Args:
        config: the settings, those of a resumed run merged with its checkpoint's.
        own_optimizer: train_at has an optimizer of the user's.
        own_scheduler: likewise a scheduler.

    Raises:
        ConfigError: names the settings, their values and the remedy.
    """
    if own_optimizer:
        _refuse_both(config, "optimizer", _OF_OPTIMIZER)
    else:
        check_optimizer(config)
    if own_scheduler:
        _refuse_both(config, "scheduler", _OF_SCHEDULE)
    else:
        _check_schedule(config, own_optimizer=own_optimizer)
    _check_ema(config)


def _changed(config: Config, names: Sequence[str]) -> list[str]:
    """Those of the settings that are not at their defaults."""
    return [name for name in names if getattr(config, name) != Config.model_fields[name].default]


def _refuse_both(config: Config, what: str, settings: Sequence[str]) -> None:
    for name in _changed(config, settings):
        raise ConfigError(
            f"train_at has {'an' if what == 'optimizer' else 'a'} {what} of yours, but {name} is set to "
            f"{getattr(config, name)!r}; give one of the two."
        )


def _check_schedule(config: Config, *, own_optimizer: bool) -> None:
    for name in _changed(config, tuple(_SCHEDULES_WITH)):
        if config.schedule not in _SCHEDULES_WITH[name]:
            raise ConfigError(
                f"{name} is {getattr(config, name)!r}, but schedule {config.schedule!r} does not use it; leave it out, "
                f"or set schedule to {' or '.join(map(repr, _SCHEDULES_WITH[name]))}."
            )
    if config.schedule == "multistep" and config.milestones is None:
        raise ConfigError("schedule 'multistep' needs milestones, such as milestones=(30, 60): the epochs of its cuts.")
    # the rates of an optimizer of the user's are known when it is made
    if config.min_lr >= config.lr and not own_optimizer:
        raise ConfigError(f"min_lr is {config.min_lr:g}, but lr is {config.lr:g}; it must be below it.")
    if config.warmup_epochs >= config.epochs:
        raise ConfigError(
            f"warmup_epochs is {config.warmup_epochs}, but the run has {config.epochs} epochs; it must be fewer."
        )


def _check_ema(config: Config) -> None:
    for name in _changed(config, ("ema_start", "best_weights")):
        if config.ema is None and getattr(config, name) != "student":
            raise ConfigError(f"{name} is {getattr(config, name)!r}, but ema is None; set ema, e.g. to 0.999.")
    if config.ema_start is not None and config.ema_start > config.epochs:
        raise ConfigError(
            f"ema_start is {config.ema_start}, but the run has {config.epochs} epochs: the average would never be "
            "measured."
        )
