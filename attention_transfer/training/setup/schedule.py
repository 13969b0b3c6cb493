"""Warnings about a learning rate that is cut to next to nothing early.

With schedule='step' it is lr gamma^((epoch - 1) // step_size) in each epoch from 1; with 'multistep' lr gamma^k after k
milestones. Cosine, onecycle and poly fall to min_lr by design, and are below a thousandth of lr in a fiftieth of the
run at most: they are never warned of, and neither is 'constant'. A warm-up does not count as a fall.
"""

from __future__ import annotations

import logging
import math

from torch.optim import Optimizer

from attention_transfer.config import Config

logger = logging.getLogger(__name__)

FADED = 1e-3
"""Below this fraction of its initial value a learning rate trains next to nothing."""
NOTICEABLE = 0.25
"""The fraction of faded epochs that is worth a warning."""
_ENOUGH = 1e-2
"""The fraction down to which a proposed step_size lets the rate fall."""
_ROUNDING = 1e-9


def faded_from(epochs: int, step_size: int, gamma: float) -> int | None:
    """The first epoch (from 1) whose learning rate is below a thousandth of its start; None if there is none.

    Args:
        epochs: passes over the training images, at least 1.
        step_size: epochs between two cuts, at least 1.
        gamma: factor of each cut, in (0, 1].
    """
    first = (_cuts_down_to(FADED, gamma) + 1) * step_size + 1 if gamma < 1 else math.inf
    return int(first) if first <= epochs else None


def _cuts_down_to(fraction: float, gamma: float) -> int:
    """How often a rate may be cut before it is below a fraction of its initial value; 0.1^3 counts as a thousandth."""
    return math.floor(math.log(fraction) / math.log(gamma) + _ROUNDING)


def schedule_warning(lr: float, epochs: int, step_size: int, gamma: float, *, goes_on: bool = False) -> str | None:
    """A warning for a run whose learning rate is below a thousandth of its start for a quarter of it or longer.

    Args:
        lr: the rate of the first epoch.
        epochs: passes over the training images, at least 1.
        step_size: epochs between two cuts, at least 1.
        gamma: factor of each cut, in (0, 1].
        goes_on: the run is resumed, so that its schedule cannot change.

    Returns:
        a sentence with the settings, the epoch and a better step_size; None if there is nothing to warn of.

    Example:
        >>> print(schedule_warning(0.01, 120, 10, 0.1))
        step_size 10 and gamma 0.1 cut lr from 0.01 to 1e-13 in 120 epochs: from epoch 41 on it is below a thousandth \
of its start, and hardly anything is learnt; set step_size=40.
    """
    first = faded_from(epochs, step_size, gamma)
    if first is None or epochs - first + 1 <= NOTICEABLE * epochs:
        return None
    better = math.ceil(epochs / (_cuts_down_to(_ENOUGH, gamma) + 1))
    last = lr * gamma ** ((epochs - 1) // step_size)
    remedy = "start a new run with " if goes_on else "set "
    return (
        f"step_size {step_size} and gamma {gamma:g} cut lr from {lr:g} to {last:.0e} in {epochs} epochs: from epoch "
        f"{first} on it is below a thousandth of its start, and hardly anything is learnt; {remedy}step_size={better}."
    )


def milestones_warning(config: Config, lr: float, *, goes_on: bool = False) -> str | None:
    """The same for schedule='multistep'; and a warning of milestones that the run does not reach.

    Args:
        config: uses epochs, milestones and gamma.
        lr: the rate of the first epoch.
        goes_on: the run is resumed, so that its schedule cannot change.

    Returns:
        a sentence; None if there is nothing to warn of.
    """
    milestones, epochs, gamma = config.milestones or (), config.epochs, config.gamma
    beyond = [milestone for milestone in milestones if milestone >= epochs]
    if beyond:
        return f"milestones {beyond} lie beyond the run of {epochs} epochs: lr is not cut there."
    needed = _cuts_down_to(FADED, gamma) + 1 if gamma < 1 else math.inf
    if len(milestones) < needed:
        return None
    last_good = milestones[int(needed) - 1]
    if epochs - last_good <= NOTICEABLE * epochs:
        return None
    remedy = "start a new run with" if goes_on else "set"
    return (
        f"milestones {list(milestones)} and gamma {gamma:g} cut lr from {lr:g} to "
        f"{lr * gamma ** len(milestones):.0e} in {epochs} epochs: from epoch {last_good + 1} on it is "
        f"below a thousandth of its start, and hardly anything is learnt; {remedy} later milestones or a greater gamma."
    )


def fading_warning(config: Config, lr: float, *, goes_on: bool = False) -> str | None:
    """The warning that a run's settings deserve, if any; see the module.

    Args:
        config: uses epochs, schedule, step_size, milestones and gamma.
        lr: the rate of the first epoch, of the setting or of the user's own optimizer.
        goes_on: the run is resumed, so that its schedule cannot change.
    """
    if config.schedule == "step":
        return schedule_warning(lr, config.epochs, config.step_size, config.gamma, goes_on=goes_on)
    return milestones_warning(config, lr, goes_on=goes_on) if config.schedule == "multistep" else None


def warn_of_fading(config: Config, optimizer: Optimizer, *, goes_on: bool) -> None:
    """Log that warning, with the rate that the optimizer's first group was made with, be it the user's own.

    Args:
        config: as for `fading_warning`.
        optimizer: of the run, with its scheduler or without.
        goes_on: the run is resumed.
    """
    group = optimizer.param_groups[0]
    # a scheduler may have changed lr already, as a warm-up does, and then keeps what it was
    told = fading_warning(config, float(group.get("initial_lr", group["lr"])), goes_on=goes_on)
    if told is not None:
        logger.warning("%s", told)
