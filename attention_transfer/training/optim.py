"""The optimizer and the schedule of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR

from attention_transfer.config import Config
from attention_transfer.errors import ConfigError

ParameterGroups = list[dict[str, Any]]
MakeOptimizer = Callable[[ParameterGroups], Optimizer]
"""An optimizer of the user's, over parameter groups as torch.optim takes them."""
MakeScheduler = Callable[[Optimizer], LRScheduler]
"""A schedule of the user's, stepped once an epoch."""


def parameter_groups(student: nn.Module, of_terms: Iterable[nn.Parameter] = ()) -> ParameterGroups:
    """What is trained: the student's parameters, and in a group of their own those of the loss's terms, if any.

    Args:
        student: the network.
        of_terms: parameters of the terms.
    """
    groups: ParameterGroups = [{"params": list(student.parameters())}]
    own = list(of_terms)
    return [*groups, {"params": own}] if own else groups


def make_optimizer(config: Config, groups: ParameterGroups, make: MakeOptimizer | None = None) -> Optimizer:
    """torch's SGD by the settings lr, momentum and weight_decay; or what the user's function makes.

    Args:
        config: the settings.
        groups: see `parameter_groups`.
        make: the user's function, which gets the groups.

    Raises:
        ConfigError: the function does not return an optimizer.
    """
    if make is None:
        return SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    optimizer = make(groups)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer made a {type(optimizer).__name__}; it must return a torch.optim.Optimizer.")
    return optimizer


def make_scheduler(config: Config, optimizer: Optimizer, make: MakeScheduler | None = None) -> LRScheduler:
    """torch's StepLR by the settings step_size and gamma; or what the user's function makes.

    Args:
        config: the settings.
        optimizer: whose learning rate is scheduled.
        make: the user's function, which gets the optimizer.

    Raises:
        ConfigError: the function does not return a scheduler.
    """
    if make is None:
        return StepLR(optimizer, config.step_size, config.gamma)
    scheduler = make(optimizer)
    if not isinstance(scheduler, LRScheduler):
        raise ConfigError(f"scheduler made a {type(scheduler).__name__}; it must return a torch LRScheduler.")
    return scheduler
