"""The optimizer of a run: torch's SGD, one of torch's or timm's by name, or the user's own."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from attention_transfer.catalogue import nearest
from attention_transfer.config import Config
from attention_transfer.errors import ConfigError
from attention_transfer.modules import unwrapped

logger = logging.getLogger(__name__)

ParameterGroups = list[dict[str, Any]]
MakeOptimizer = Callable[[ParameterGroups], Optimizer]
"""The user's function from parameter groups, as torch.optim takes them, to an optimizer."""

LOOKAHEAD = "lookahead_"
"""timm's prefix for an optimizer inside of Lookahead."""
LOOKAHEAD_INTERVAL = 6
"""Steps after which it makes its copy of the weights."""
_UNFIT = {
    "lbfgs": "its step computes the loss several times",
    "sparseadam": "it takes sparse gradients alone",
    "adahessian": "it needs second derivatives of the loss",
    **dict.fromkeys(("kron", "kronc", "kronw"), "a checkpoint lacks part of its state"),
}


class _Named(NamedTuple):
    """An optimizer's class, and how timm calls it; None for torch's own."""

    kind: type[Optimizer]
    in_timm: str | None = None


def parameter_groups(
    student: nn.Module,
    of_terms: Iterable[nn.Parameter] = (),
    config: Config | None = None,
    *,
    only_trained: bool = False,
) -> ParameterGroups:
    """The parameter groups to train: the student's, and a last one for those of the loss terms, if any.

    Args:
        student: the network.
        of_terms: parameters of the loss terms.
        config: with weight_decay_norms=False the student has a group without weight decay, for its biases, the
            weights of norms (all parameters of one dimension), and what a network of timm's keeps from decaying.
        only_trained: leave out the student's frozen parameters.
    """
    of_student = [parameter for parameter in student.parameters() if parameter.requires_grad or not only_trained]
    groups: ParameterGroups = [{"params": of_student}]
    if config is not None and not config.weight_decay_norms:
        from timm.optim import param_groups_weight_decay

        network = unwrapped(student)
        spared: set[str] = getattr(network, "no_weight_decay", set)()
        groups = param_groups_weight_decay(network, config.weight_decay, no_weight_decay_list=spared)
    own = list(of_terms)
    return [*groups, {"params": own}] if own else groups


def make_optimizer(config: Config, groups: ParameterGroups, make: MakeOptimizer | None = None) -> Optimizer:
    """The optimizer by the settings, or what the user's function returns.

    Args:
        config: uses optimizer, lr, momentum, nesterov and weight_decay.
        groups: see `parameter_groups`.
        make: the user's function, which gets the groups.

    Raises:
        ConfigError: no optimizer has this name, it lacks what a setting asks for, or it cannot be made; or the
            function does not return an optimizer, or one without the parameters of the loss terms.
    """
    if make is None:
        return _by_name(config, groups)
    optimizer = make(groups)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer made a {type(optimizer).__name__}; it must return a torch.optim.Optimizer.")
    _check_all_are_trained(optimizer, groups)
    _warn_of_unused(config, optimizer)
    return optimizer


def check_optimizer(config: Config) -> None:
    """Refuse an optimizer that cannot be made, before anything else is done.

    Raises:
        ConfigError: see `make_optimizer`.
    """
    some = [nn.Parameter(torch.zeros(shape)) for shape in ((2,), (2, 2), (2, 2, 1, 1))]
    _by_name(config, [{"params": some}])


class StateSize(NamedTuple):
    """The state that an optimizer keeps of a parameter.

    Attributes:
        copies: its bytes, as a multiple of the parameter's.
        tensors: how many it is.
    """

    copies: float = 1.0
    tensors: int = 1


def state_size(config: Config) -> StateSize:
    """The state that the optimizer of the settings keeps of a parameter."""
    parameter = nn.Parameter(torch.ones(16, 16, 3, 3))
    parameter.grad = torch.ones_like(parameter)
    optimizer = _by_name(config, [{"params": [parameter]}])
    for _ in range(LOOKAHEAD_INTERVAL):
        optimizer.step()
    kept = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    tensors = [value for value in kept if isinstance(value, Tensor)]
    stored = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    return StateSize(max(1.0, stored / parameter.untyped_storage().nbytes()), max(1, len(tensors)))


def optimizer_in_words(config: Config, optimizer: Optimizer) -> str:
    """A sentence with the optimizer's class and settings, for the log.

    Example:
        >>> config = Config(optimizer="AdamW", lr=1e-3)
        >>> optimizer_in_words(config, make_optimizer(config, [{"params": [torch.zeros(1, requires_grad=True)]}]))
        'the optimizer is AdamW (torch.optim.adamw): lr 0.001, weight_decay 0.0005'
    """
    group = optimizer.param_groups[0]
    values = {"lr": config.lr, "weight_decay": config.weight_decay, "momentum": config.momentum}
    told = [f"{name} {value:g}" for name, value in values.items() if name in group]
    told += ["nesterov"] if group.get("nesterov") else []
    told += [] if config.weight_decay_norms else ["no decay of norms and biases"]
    kind = type(getattr(optimizer, "_base_optimizer", optimizer))
    inside = " inside of Lookahead" if kind is not type(optimizer) else ""
    return f"the optimizer is {kind.__name__} ({kind.__module__}){inside}: {', '.join(told)}"


def _by_name(config: Config, groups: ParameterGroups) -> Optimizer:
    named = _find(config.optimizer)
    settings = _settings(config, named.kind)
    try:
        if named.in_timm is None:
            return named.kind(groups, **settings)
        from timm.optim import create_optimizer_v2

        made: Optimizer = create_optimizer_v2(groups, named.in_timm, **settings)
    except (AssertionError, ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {config.optimizer!r} cannot be made: {error}") from error
    return made


def _find(name: str) -> _Named:
    """The optimizer of a name.

    'sgd' is torch's, whatever timm means by it. A class name in torch's spelling is torch's class with torch's
    defaults; any other name is timm's where timm has it, whatever its case, and else torch's.
    """
    inner = name.lower().removeprefix(LOOKAHEAD)
    if inner in _UNFIT:
        raise ConfigError(f"optimizer {name!r} does not fit the training loop: {_UNFIT[inner]}.")
    of_torch = {each: kind for each, kind in vars(torch.optim).items() if _is_optimizer(kind)}
    if name.lower() == "sgd":
        return _Named(SGD)
    found = None if name in of_torch else _in_timm(name.lower())
    if found is None:
        spelt = next((each for each in of_torch if each.lower() == name.lower()), None)
        if spelt is None:
            known = [*of_torch, *_names_in_timm()]
            raise ConfigError(
                f"no optimizer is called {name!r}; names are those of timm.optim.list_optimizers() and the classes of "
                f"torch.optim.{nearest(name, known)}"
            )
        found = _Named(of_torch[spelt])
    return found


def _is_optimizer(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer


def _names_in_timm() -> list[str]:
    from timm.optim import list_optimizers

    return [str(name) for name in list_optimizers()]


def _in_timm(name: str) -> _Named | None:
    from timm.optim import get_optimizer_class

    inner = name.removeprefix(LOOKAHEAD)
    if inner not in _names_in_timm():
        return None
    try:
        kind: Any = get_optimizer_class(inner, bind_defaults=False)
    except (AssertionError, ImportError) as error:
        raise ConfigError(f"optimizer {name!r} cannot be made: {error}") from error
    return _Named(kind, name)


def _settings(config: Config, kind: type[Optimizer]) -> dict[str, Any]:
    """The settings as arguments of an optimizer's class; one that it lacks is refused, unless it is at its default."""
    accepted = inspect.signature(kind).parameters
    # timm's other optimizers with nesterov are made so by their names
    is_plain = config.optimizer.lower().removeprefix(LOOKAHEAD) == "sgd"
    settings: dict[str, Any] = {"lr": config.lr}
    for name in ("momentum", "nesterov", "weight_decay"):
        value, default = getattr(config, name), Config.model_fields[name].default
        if name in accepted and (name != "nesterov" or value or is_plain):
            settings[name] = value
        elif name not in accepted and value not in (default, 0):
            raise ConfigError(
                f"{name} is {value!r}, but optimizer {config.optimizer!r} ({kind.__name__}) has no {name}; leave it "
                "out."
            )
    return settings


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


def _warn_of_unused(config: Config, optimizer: Optimizer) -> None:
    """Warn of settings of the optimizer that the user's own does not go by."""
    for name in ("lr", "momentum", "weight_decay"):
        value, present = getattr(config, name), {group.get(name) for group in optimizer.param_groups}
        if value != Config.model_fields[name].default and value not in present:
            logger.warning(
                "%s is %g, but train_at has an optimizer of yours, which has %s: the setting does nothing",
                name,
                value,
                " and ".join("none" if each is None else f"{each:g}" for each in present),
            )
