"""Schedules of the learning rate: which scheduler, and when it is stepped.

Step, multistep and constant without a warm-up are torch's schedulers, stepped after each epoch. Everything that changes
within an epoch is stepped after each step of the optimizer: onecycle is torch's, the others timm's, whose rates are
closed formulas of the number of steps done. There a warm-up of w steps has the rates lr (k + 1) / (w + 1), k from 0:
none is 0. Milestones and step_size count from the start of the run, whatever the warm-up.

lr is each parameter group's own: that of the setting, or what an optimizer of the user's has given it.
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

    def begin_again(self, epoch: int) -> None:
        """Go back to the start of an epoch (from 0) that is trained again."""

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
        scheduler: torch's, or timm's made with t_in_epochs=False and no warm-up.
        in_epoch: steps in an epoch.
        total: how many rates it has; None: no end.
        warm: steps of the warm-up before timm's rates.
        by_epoch: step it after each epoch instead, where the number of batches is unknown; in_epoch is then 1.
    """

    def __init__(
        self, scheduler: Any, in_epoch: int, *, total: int | None = None, warm: int = 0, by_epoch: bool = False
    ) -> None:
        super().__init__(scheduler)
        self._in_epoch = in_epoch
        self._total = total
        self._warm = warm
        self._by_epoch = by_epoch
        self._done = 0
        if warm:
            self._set_rates()

    def after_update(self) -> None:
        if not self._by_epoch:
            self._advance()

    def after_epoch(self) -> None:
        if self._by_epoch:
            self._advance()

    def begin_again(self, epoch: int) -> None:
        self._go_to(epoch * self._in_epoch)

    def _advance(self) -> None:
        if self._total is None or self._done + 1 < self._total:
            self._go_to(self._done + 1)

    def _go_to(self, done: int) -> None:
        self._done = done if self._total is None else min(done, self._total - 1)
        self._set_rates()

    def _set_rates(self) -> None:
        if isinstance(self.scheduler, LRScheduler):
            self.scheduler.last_epoch = self._done - 1
            _step(self.scheduler)
        elif self._done < self._warm:
            self.scheduler.update_groups(
                [lr * (self._done + 1) / (self._warm + 1) for lr in self.scheduler.base_values]
            )
        else:
            # cosine and poly fall in what the warm-up leaves of the run; cuts stay where they are
            self.scheduler.step_update(self._done if self._total is None else self._done - self._warm)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "steps_done": self._done, "steps_in_epoch": self._in_epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; where an epoch had another number of steps, at the same point of the run."""
        of_scheduler = dict(state)
        done, in_epoch = of_scheduler.pop("steps_done"), of_scheduler.pop("steps_in_epoch")
        if in_epoch == self._in_epoch:
            super().load_state_dict(of_scheduler)
            self._done = done
            return
        logger.warning(
            "an epoch has %d steps of the learning rate, and had %d: it goes on at the same point of the run",
            self._in_epoch,
            in_epoch,
        )
        self._go_to(round(done * self._in_epoch / in_epoch))


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
        config: uses schedule, step_size, milestones, gamma, warmup_epochs, min_lr, epochs and accumulate.
        optimizer: the one to schedule; its rates are the highest ones.
        make: the user's function, which gets the optimizer.
        batches: in an epoch; None if that is unknown: rates then change after each epoch, which is logged.

    Raises:
        ConfigError: the function does not return a scheduler, or one whose steps need a figure; the run is too short
            for onecycle; min_lr is not below the optimizer's rates.
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
    _check_floor(config, optimizer)
    in_epoch = 1 if batches is None else math.ceil(batches / config.accumulate)
    total = in_epoch * config.epochs if config.schedule in SMOOTH else None
    warm = 0 if config.schedule == "onecycle" else in_epoch * config.warmup_epochs
    scheduler = _scheduler(config, optimizer, in_epoch, warm)
    return SteadySchedule(scheduler, in_epoch, total=total, warm=warm, by_epoch=batches is None)


def _check_floor(config: Config, optimizer: Optimizer) -> None:
    lowest = min(float(group["lr"]) for group in optimizer.param_groups)
    if config.schedule in SMOOTH and config.min_lr >= lowest:
        raise ConfigError(f"min_lr is {config.min_lr:g}, but the optimizer has lr {lowest:g}; it must be below it.")


def _scheduler(config: Config, optimizer: Optimizer, in_epoch: int, warm: int) -> Any:
    """The scheduler of the settings, of `in_epoch` steps an epoch and `warm` of a warm-up; timm's has no warm-up."""
    from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler, StepLRScheduler

    total = in_epoch * config.epochs
    if config.schedule == "onecycle":
        return _one_cycle(config, optimizer, total)
    falling: dict[str, Any] = {"t_initial": total - warm, "lr_min": config.min_lr, "t_in_epochs": False}
    if config.schedule == "cosine":
        return CosineLRScheduler(optimizer, **falling)
    if config.schedule == "poly":
        return PolyLRScheduler(optimizer, power=POLY_POWER, **falling)
    cut: dict[str, Any] = {"decay_rate": config.gamma, "t_in_epochs": False}
    if config.schedule == "step":
        return StepLRScheduler(optimizer, decay_t=config.step_size * in_epoch, **cut)
    # timm cuts at milestone - 1
    cuts = [milestone * in_epoch + 1 for milestone in config.milestones or ()]
    return MultiStepLRScheduler(optimizer, decay_t=cuts, **cut)


def _one_cycle(config: Config, optimizer: Optimizer, total: int) -> OneCycleLR:
    rise = config.warmup_epochs / config.epochs if config.warmup_epochs else ONE_CYCLE_RISE
    if rise * total <= 1:
        raise ConfigError(
            f"schedule 'onecycle' has {total} steps of the optimizer in {config.epochs} epochs, too few to rise and "
            "fall; set more epochs, or another schedule."
        )
    scheduler = OneCycleLR(
        optimizer,
        max_lr=[float(group["lr"]) for group in optimizer.param_groups],
        total_steps=total,
        pct_start=rise,
        div_factor=ONE_CYCLE_START,
        # momentum is a setting, and stays what it says
        cycle_momentum=False,
    )
    for group in optimizer.param_groups:
        group["min_lr"] = config.min_lr
    return scheduler
