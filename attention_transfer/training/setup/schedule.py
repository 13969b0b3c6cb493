"""Warnings about StepLR's learning rate, lr gamma^((epoch - 1) // step_size) in each epoch from 1."""

from __future__ import annotations

import math

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
