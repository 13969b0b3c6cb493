"""Frozen parts of the student: not trained, and in eval mode while the rest is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from attention_transfer.catalogue import nearest
from attention_transfer.config import Config
from attention_transfer.errors import ConfigError
from attention_transfer.modules import unwrapped
from attention_transfer.networks.heads import head_names

logger = logging.getLogger(__name__)

BACKBONE = "backbone"
_SHOWN = 12


def freeze(student: nn.Module, config: Config) -> tuple[str, ...]:
    """Freeze the modules of the student that the setting `freeze` names; logged, with the number of parameters.

    Args:
        student: its parameters' requires_grad is changed.
        config: uses freeze and num_classes.

    Returns:
        the names of the frozen modules, each with all that is in it; () without the setting.

    Raises:
        ConfigError: there is no module of such a name, it has no parameters, it is unknown which is the head, or
            nothing is left to train.
    """
    if config.freeze is None:
        return ()
    network = unwrapped(student)
    if config.freeze == BACKBONE:
        frozen = _freeze_backbone(network, config)
    else:
        _check_names(network, config.freeze)
        frozen = tuple(config.freeze)
        for name in frozen:
            network.get_submodule(name).requires_grad_(False)
    _log(network, frozen)
    return frozen


def _freeze_backbone(network: nn.Module, config: Config) -> tuple[str, ...]:
    try:
        heads = head_names(network, config.num_classes or 0)
    except ConfigError as error:
        raise ConfigError(f"freeze is {BACKBONE!r}, but {error} Name the modules that are to be frozen.") from None
    of_heads = {id(parameter) for head in heads for parameter in network.get_submodule(head).parameters()}
    for parameter in network.parameters():
        if id(parameter) not in of_heads:
            parameter.requires_grad_(False)
    return tuple(_beside(network, heads))


def _beside(network: nn.Module, heads: Sequence[str], within: str = "") -> Iterator[str]:
    """The greatest modules that hold no head, in their order."""
    for child, _ in network.get_submodule(within).named_children():
        name = f"{within}.{child}" if within else child
        if any(head.startswith(f"{name}.") for head in heads):
            yield from _beside(network, heads, name)
        elif name not in heads:
            # also those without weights: dropout in front of the head is part of what does not learn
            yield name


def _check_names(network: nn.Module, names: Sequence[str]) -> None:
    modules = {name: module for name, module in network.named_modules() if name}
    kind = type(network).__name__
    if not names:
        raise ConfigError("freeze names no module; leave it out to train all of the student.")
    for name in names:
        if name not in modules:
            raise ConfigError(
                f"freeze has {name!r}, but {kind} has no such module.{nearest(name, list(modules))} It has "
                f"{_some(_with_parameters(network))}, and the modules in them; or freeze={BACKBONE!r}."
            )
        if not any(True for _ in modules[name].parameters()):
            raise ConfigError(f"freeze has {name!r}, which has no parameters in {kind}; leave it out.")


def _with_parameters(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_children() if any(True for _ in module.parameters())]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _log(network: nn.Module, frozen: Sequence[str]) -> None:
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    if not trained:
        raise ConfigError("there is nothing to train: freeze leaves no parameter of the student; name fewer modules.")
    total = sum(map(Tensor.numel, network.parameters()))
    with_weights = [name for name in frozen if any(True for _ in network.get_submodule(name).state_dict())]
    logger.info("frozen are %s: %s of %s parameters are trained", _some(with_weights), f"{trained:,}", f"{total:,}")


def frozen_modules(student: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The modules of the student that `freeze` has frozen, by name."""
    return [unwrapped(student).get_submodule(name) for name in names]


def warn_of_useless_freezing(config: Config, *, has_teacher: bool, is_random: bool) -> None:
    """Warn of frozen modules with random weights, and of attention that cannot change.

    Args:
        config: uses freeze and beta.
        has_teacher: whether there is a teacher.
        is_random: the student is new, with neither pretrained weights nor those of a checkpoint.
    """
    if config.freeze is None:
        return
    if is_random:
        logger.warning("the frozen modules keep random weights: set weights or init_from, or leave freeze out")
    if config.freeze == BACKBONE and has_teacher and config.beta > 0:
        logger.warning(
            "freeze is %r, so that attention transfer changes nothing: its maps are of frozen modules; set beta=0",
            BACKBONE,
        )
