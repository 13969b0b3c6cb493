"""Names as teacher_model: pretrained weights, and suggestions for names that are close to one."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from attention_transfer.catalogue import NETWORKS, WEIGHT_FILES, canonical_network_name
from attention_transfer.errors import ConfigError
from attention_transfer.networks.registry import architectures

_SHOWN = 3


def pretrained_weights(teacher_model: str) -> tuple[str, str] | None:
    """The network and its published weights out of a name like 'resnet50:DEFAULT'; None for a path.

    Raises:
        ConfigError: there are no weights of this name, and no such file; the message names those that there are.
    """
    if Path(teacher_model).exists():
        return None
    network, colon, weights = teacher_model.partition(":")
    offered = _offered()
    name = next((name for name in offered if name.lower() == network.lower()), None)
    if not colon or name is None:
        return None
    if weights.upper() not in offered[name]:
        raise ConfigError(f"teacher_model is {teacher_model!r}, but {name} has no weights of this name. {_possible()}")
    return name, weights.upper()


def _offered() -> dict[str, tuple[str, ...]]:
    """The networks that have pretrained weights, with the names of these."""
    return {each.name_pattern: each.pretrained_names for each in architectures() if each.pretrained_names}


def _possible() -> str:
    offered = [f"{name}:{weights}" for name, names in _offered().items() for weights in names]
    return f"Possible are {', '.join(offered)}."


def what_it_may_be(teacher_model: str) -> str:
    """A sentence on a teacher_model that is neither a file nor the name of pretrained weights."""
    if teacher_model.lower().endswith(WEIGHT_FILES):
        return f"{teacher_model} is not a file; give the path of a checkpoint."
    network = re.split(r"[:.]", teacher_model.rpartition("/")[2])[0]
    start = f"teacher_model is {teacher_model!r}, which is not a file"
    offered = next((name for name in _offered() if name.lower() == network.lower()), None)
    if offered is not None:
        return f"{start}; for torchvision's pretrained weights write {offered}:DEFAULT. {_possible()}"
    if _is_ours(network):
        own = canonical_network_name(network)
        return f"{start}; {own} is a network without published weights: give the path of a checkpoint of one."
    library = _library_of(network)
    if library is not None:
        return f"{start}; for the library's network with its pretrained weights write {library}. {_possible()}"
    near = difflib.get_close_matches(network.lower(), [*map(str.lower, _offered())], n=1, cutoff=0.7)
    meant = [name for name in _offered() if name.lower() in near]
    hint = f" Did you mean '{meant[0]}:DEFAULT'?" if meant else ""
    return f"{start}; give the path of a checkpoint, or the name of pretrained weights. {_possible()}{hint}"


def _is_ours(name: str) -> bool:
    if not any(re.fullmatch(family.pattern, name, re.IGNORECASE) for family in NETWORKS):
        return False
    try:
        canonical_network_name(name)
    except ConfigError:  # of a depth that the family does not have
        return False
    return True


def _library_of(name: str) -> str | None:
    """The prefix and name under which torchvision or timm has a network; None where neither has one of this name."""
    from torchvision import models

    if name.lower() in models.list_models(models):
        return f"torchvision/{name.lower()}"
    import timm

    return f"timm/{name}" if timm.is_model(name) else None
