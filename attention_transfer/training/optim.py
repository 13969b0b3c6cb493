"""The optimizer and the schedule of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, StepLR

from attention_transfer.config import Config
from attention_transfer.errors import ConfigError

logger = logging.getLogger(__name__)

ParameterGroups = list[dict[str, Any]]
MakeOptimizer = Callable[[ParameterGroups], Optimizer]
"""The user's function from parameter groups, as torch.optim takes them, to an optimizer."""
MakeScheduler = Callable[[Optimizer], LRScheduler]
"""The user's function from an optimizer to a learning rate scheduler, stepped once an epoch."""


def parameter_groups(
    student: nn.Module, of_terms: Iterable[nn.Parameter] = (), *, only_trained: bool = False
) -> ParameterGroups:
    """The parameter groups to train: the student's, and a second one for those of the loss terms, if any.

    Args:
        student: the network.
        of_terms: parameters of the loss terms.
        only_trained: leave out the student's frozen parameters.
    """
    of_student = [parameter for parameter in student.parameters() if parameter.requires_grad or not only_trained]
    groups: ParameterGroups = [{"params": of_student}]
    own = list(of_terms)
    return [*groups, {"params": own}] if own else groups


def make_optimizer(config: Config, groups: ParameterGroups, make: MakeOptimizer | None = None) -> Optimizer:
    """The optimizer: SGD by the settings lr, momentum and weight_decay, or what the user's function returns.

    Args:
        config: the settings.
        groups: see `parameter_groups`.
        make: the user's function, which gets the groups.

    Raises:
        ConfigError: the function does not return an optimizer, or one without the parameters of the loss terms.
    """
    if make is None:
        return SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    optimizer = make(groups)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer made a {type(optimizer).__name__}; it must return a torch.optim.Optimizer.")
    _check_all_are_trained(optimizer, groups)
    return optimizer


def _check_all_are_trained(optimizer: Optimizer, groups: ParameterGroups) -> None:
    """Some of the student's parameters may be left out on purpose, which is logged; none of the loss terms' may."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    of_student, *of_terms = ([p for p in g["params"] if p.requires_grad and id(p) not in trained] for g in groups)
    if any(of_terms):
        raise ConfigError("the optimizer lacks parameters of the loss terms; make it of all groups that it is given.")
    if of_student:
        logger.warning(
            "the optimizer trains all but %d of the student's parameters", sum(map(Tensor.numel, of_student))
        )


def make_scheduler(config: Config, optimizer: Optimizer, make: MakeScheduler | None = None) -> LRScheduler:
    """The learning rate scheduler: StepLR by step_size and gamma, or what the user's function returns.

    Args:
        config: the settings.
        optimizer: the one to schedule.
        make: the user's function, which gets the optimizer.

    Raises:
        ConfigError: the function does not return a scheduler, or one whose steps need a figure.
    """
    if make is None:
        return StepLR(optimizer, config.step_size, config.gamma)
    scheduler = make(optimizer)
    if not isinstance(scheduler, LRScheduler):
        raise ConfigError(f"scheduler made a {type(scheduler).__name__}; it must return a torch LRScheduler.")
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ConfigError("scheduler made a ReduceLROnPlateau, which needs a figure in each step; take one without.")
    return scheduler
