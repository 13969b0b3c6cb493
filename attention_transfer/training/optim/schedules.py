"""Schedules of the learning rate: which scheduler, and when it is stepped.

Step, multistep and constant without a warm-up are torch's schedulers, stepped after each epoch. Everything that changes
within an epoch is stepped after each step of the optimizer: onecycle is torch's, the others timm's, whose rates are
closed formulas of the number of steps done. There a warm-up of w steps has the rates lr (k + 1) / (w + 1), k from 0:
none is 0. Milestones and step_size count from the start of the run, whatever the warm-up.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, MultiStepLR, OneCycleLR, ReduceLROnPlateau, StepLR

from attention_transfer.config import Config
from attention_transfer.errors import ConfigError

logger = logging.getLogger(__name__)

MakeScheduler = Callable[[Optimizer], LRScheduler]
"""The user's function from an optimizer to a learning rate scheduler, stepped once an epoch."""

SMOOTH = ("cosine", "onecycle", "poly")
"""Schedules over the whole run, whose every rate depends on the number of epochs."""
POLY_POWER = 0.9
"""Of the poly schedule, as in DeepLab (Chen et al. 2018, arXiv:1606.00915, section 4.1)."""
ONE_CYCLE_RISE = 0.3
"""The part of a run in which the rate of onecycle rises, unless warmup_epochs says another; torch's default."""
ONE_CYCLE_START = 25.0
"""onecycle begins at lr divided by this; torch's default."""


class Schedule:
    """A scheduler that is stepped once an epoch.

    Attributes:
        scheduler: torch's or timm's.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def after_update(self) -> None:
        """Count a step of the optimizer."""

    def after_epoch(self) -> None:
        """Count an epoch."""
        _step(self.scheduler)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        state: dict[str, Any] = self.scheduler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.scheduler.load_state_dict(state)


class SteadySchedule(Schedule):
    """A scheduler that is stepped after each step of the optimizer, and stays at its last rate when it is through.

    Args:
        scheduler: torch's, or timm's made with t_in_epochs=False.
        total: how many rates it has; None: no end.
        by_epoch: step it after each epoch instead, where the number of batches is unknown.
    """

    def __init__(self, scheduler: Any, total: int | None = None, *, by_epoch: bool = False) -> None:
        super().__init__(scheduler)
        self._total = total
        self._by_epoch = by_epoch
        self._done = 0

    def after_update(self) -> None:
        if not self._by_epoch:
            self._advance()

    def after_epoch(self) -> None:
        if self._by_epoch:
            self._advance()

    def _advance(self) -> None:
        if self._total is not None and self._done + 1 >= self._total:
            return
        self._done += 1
        if isinstance(self.scheduler, LRScheduler):
            _step(self.scheduler)
        else:
            self.scheduler.step_update(self._done)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "steps_done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({key: value for key, value in state.items() if key != "steps_done"})
        self._done = state["steps_done"]


def _step(scheduler: LRScheduler) -> None:
    with warnings.catch_warnings():
        # a run resumed after the last batch of an epoch has not stepped its optimizer in this process
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        scheduler.step()


def make_scheduler(
    config: Config, optimizer: Optimizer, make: MakeScheduler | None = None, batches: int | None = None
) -> Schedule:
    """The schedule by the settings, or of what the user's function returns.

    Args:
        config: uses schedule, step_size, milestones, gamma, warmup_epochs, min_lr, lr, epochs and accumulate.
        optimizer: the one to schedule.
        make: the user's function, which gets the optimizer.
        batches: in an epoch; None if that is unknown: rates then change after each epoch, which is logged.

    Raises:
        ConfigError: the function does not return a scheduler, or one whose steps need a figure; the run is too short
            for onecycle.
    """
    if make is not None:
        return Schedule(_checked(make(optimizer)))
    if config.schedule in SMOOTH or config.warmup_epochs:
        if batches is None:
            logger.warning(
                "the train_loader has no length: with schedule %r and warmup_epochs %d the learning rate changes after "
                "each epoch instead of each batch",
                config.schedule,
                config.warmup_epochs,
            )
        return _steady(config, optimizer, batches)
    if config.schedule == "step":
        return Schedule(StepLR(optimizer, config.step_size, config.gamma))
    if config.schedule == "multistep":
        return Schedule(MultiStepLR(optimizer, list(config.milestones or ()), config.gamma))
    return Schedule(ConstantLR(optimizer, factor=1.0, total_iters=0))


def _checked(scheduler: object) -> LRScheduler:
    if not isinstance(scheduler, LRScheduler):
        raise ConfigError(f"scheduler made a {type(scheduler).__name__}; it must return a torch LRScheduler.")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ConfigError("scheduler made a ReduceLROnPlateau, which needs a figure in each step; take one without.")
    return scheduler


def _steady(config: Config, optimizer: Optimizer, batches: int | None) -> SteadySchedule:
    in_epoch = 1 if batches is None else math.ceil(batches / config.accumulate)
    total = in_epoch * config.epochs
    by_epoch = batches is None
    if config.schedule == "onecycle":
        return SteadySchedule(_one_cycle(config, optimizer, total), total, by_epoch=by_epoch)
    warm = in_epoch * config.warmup_epochs
    common = {
        "t_in_epochs": False,
        "warmup_t": warm,
        "warmup_lr_init": config.lr / (warm + 1),
        "warmup_prefix": config.schedule in SMOOTH,
    }
    scheduler = _of_timm(config, optimizer, in_epoch, total - warm, common)
    return SteadySchedule(scheduler, total if config.schedule in SMOOTH else None, by_epoch=by_epoch)


def _of_timm(config: Config, optimizer: Optimizer, in_epoch: int, falling: int, common: dict[str, Any]) -> Any:
    """timm's scheduler of the settings, of `in_epoch` steps an epoch, the last `falling` of them after the warm-up."""
    from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler, StepLRScheduler

    if config.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=falling, lr_min=config.min_lr, **common)
    if config.schedule == "poly":
        return PolyLRScheduler(optimizer, t_initial=falling, power=POLY_POWER, lr_min=config.min_lr, **common)
    if config.schedule == "step":
        return StepLRScheduler(optimizer, decay_t=config.step_size * in_epoch, decay_rate=config.gamma, **common)
    # timm cuts at milestone - 1
    cuts = [milestone * in_epoch + 1 for milestone in config.milestones or ()]
    return MultiStepLRScheduler(optimizer, decay_t=cuts, decay_rate=config.gamma, **common)


def _one_cycle(config: Config, optimizer: Optimizer, total: int) -> OneCycleLR:
    rise = config.warmup_epochs / config.epochs if config.warmup_epochs else ONE_CYCLE_RISE
    if rise * total <= 1:
        raise ConfigError(
            f"schedule 'onecycle' has {total} steps of the optimizer in {config.epochs} epochs, too few to rise and "
            "fall; set more epochs, or another schedule."
        )
    return OneCycleLR(
        optimizer,
        max_lr=config.lr,
        total_steps=total,
        pct_start=rise,
        div_factor=ONE_CYCLE_START,
        final_div_factor=config.lr / ONE_CYCLE_START / config.min_lr if config.min_lr else math.inf,
        # momentum is a setting, and stays what it says
        cycle_momentum=False,
    )
