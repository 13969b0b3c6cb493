"""Finding the weights in a file of any training script: under which key, and with which prefix."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from attention_transfer.errors import TeacherError
from attention_transfer.networks.architecture import Shapes
from attention_transfer.networks.fitting import Fit, find_fits
from attention_transfer.weight_keys import rank_of

logger = logging.getLogger(__name__)

COUNTERS = ("total_ops", "total_params", "n_averaged")
"""Last parts of keys that thop's profiler and torch's AveragedModel add to a network."""
MOST_DEEP = 4
_LEAST_TENSORS = 3
_SHOWN = 8

Weights = dict[str, Tensor]


class Found(NamedTuple):
    """A state_dict and its dotted key in the file; '' for a bare one."""

    weights: Weights
    key: str


def find_weights(
    content: object, path: str, teacher_key: str | None = None, remedy: str = "say which with the key teacher_key"
) -> Found:
    """The one state_dict in what a file holds.

    Without `teacher_key`, a bare state_dict is taken; else averaged weights (state_dict_ema, model_ema, ema, ...);
    else those under a usual key (state_dict, model, net, network, weights, params, ...), at any depth; else the only
    ones that there are. Which were taken is logged.

    Args:
        content: what a .pth or .safetensors file holds.
        path: the file, for messages.
        teacher_key: the key of the state_dict, dotted where it is nested; or a prefix of the tensors' names.
        remedy: what the message of an error proposes where there are several.

    Raises:
        TeacherError: there is none, or several are equally good and `teacher_key` does not say which.
    """
    if teacher_key is not None:
        return Found(_at(content, teacher_key, path), teacher_key)
    places = {key: weights for key, weights in _places(content) if rank_of(key) < 3}
    if not places:
        raise TeacherError(
            f"{path} holds no state_dict, neither bare nor under a key of its own. {_what_there_is(content)}"
        )
    best = min(rank_of(key) for key in places)
    chosen = [key for key in places if rank_of(key) == best]
    if len(chosen) > 1:
        names = ", ".join(".".join(key) for key in chosen)
        raise TeacherError(f"{path} holds the weights of several networks: {names}; {remedy}.")
    [key] = chosen
    others = [".".join(other) for other in places if other != key]
    if others:
        logger.info(
            "%s holds weights under %s, and also under %s: the first are taken; teacher_key chooses others",
            path, ".".join(key), ", ".join(others),
        )  # fmt: skip
    elif best != 1 and key:
        logger.info("the weights in %s are taken from %s", path, ".".join(key))
    return Found(_cleaned(places[key], path), ".".join(key))


def _places(content: object, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Every state_dict in nested dicts, by its key; a state_dict is not searched for another."""
    if not isinstance(content, Mapping) or len(key) > MOST_DEEP:
        return
    if _is_state_dict(content):
        yield key, content
        return
    for name, value in content.items():
        if isinstance(name, str):
            yield from _places(value, (*key, name))


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Whether tensors by name are in a dict, at least one of them a matrix, and beside them at most single values."""
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    others = [value for value in content.values() if not isinstance(value, Tensor)]
    return (
        all(isinstance(key, str) for key in content)
        and any(tensor.dim() > 1 for tensor in tensors)
        and len(others) < len(tensors)
        and all(value is None or isinstance(value, bool | int | float | str) for value in others)
    )


def _at(content: object, teacher_key: str, path: str) -> Weights:
    here, rest = content, teacher_key
    while rest and isinstance(here, Mapping):
        if rest in here:
            here, rest = here[rest], ""
        elif rest.partition(".")[0] in here:
            name, _, rest = rest.partition(".")
            here = here[name]
        else:
            here = {key[len(rest) + 1 :]: value for key, value in here.items() if str(key).startswith(f"{rest}.")}
            rest = ""
    if rest or not isinstance(here, Mapping) or not _is_state_dict(here):
        raise TeacherError(
            f"teacher_key is {teacher_key!r}, but {path} has no weights there. {_what_there_is(content)}"
        )
    return _cleaned(here, path)


def _what_there_is(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"It is a {type(content).__name__}."
    found = [".".join(key) for key, _ in _places(content) if key]
    if found:
        return f"Weights are under {', '.join(found[:_SHOWN])}."
    return f"Its keys are {', '.join(map(str, list(content)[:_SHOWN]))}." if content else "It is empty."


def _cleaned(weights: Mapping[str, Any], path: str) -> Weights:
    """The weights without entries that are not tensors of a network."""
    tensors = {
        key: value
        for key, value in weights.items()
        if isinstance(value, Tensor) and key.rpartition(".")[2] not in COUNTERS
    }
    left_out = sorted({key.rpartition(".")[2] for key in weights.keys() - tensors.keys()})
    if left_out:
        logger.info("of %s these are no weights, and are left out: %s", path, ", ".join(left_out))
    return tensors


class Reading(NamedTuple):
    """A state_dict's tensors that share a prefix, by their names without it.

    Attributes:
        prefix: with its last dot; '' for all tensors.
        weights: the tensors.
        beside: names of the others.
    """

    prefix: str
    weights: Weights
    beside: list[str]

    @property
    def shapes(self) -> Shapes:
        """The shape of each tensor."""
        return {key: tuple(tensor.shape) for key, tensor in self.weights.items()}


def readings(weights: Weights) -> Iterator[list[Reading]]:
    """The tensors as they are named, then with ever longer prefixes removed: module.model.conv1, model.conv1, conv1.

    List i holds the readings with i parts of the names removed. Where names have several prefixes, as 'model.' and
    'criterion.', each prefix is a reading.

    Example:
        >>> import torch
        >>> names = ["module.fc.weight", "module.fc.bias", "module.conv.weight"]
        >>> [[reading.prefix for reading in level] for level in readings({name: torch.zeros(1) for name in names})]
        [[''], ['module.']]
    """
    level = [Reading("", weights, [])]
    for _ in range(MOST_DEEP + 1):
        if not level:
            return
        yield level
        level = [deeper for reading in level for deeper in _one_part_less(reading, weights)]


def _one_part_less(reading: Reading, everything: Weights) -> Iterator[Reading]:
    parts: dict[str, Weights] = {}
    for key, tensor in reading.weights.items():
        first, dot, rest = key.partition(".")
        if dot:
            parts.setdefault(first, {})[rest] = tensor
    for first, weights in parts.items():
        if len(weights) >= _LEAST_TENSORS:
            prefix = f"{reading.prefix}{first}."
            yield Reading(prefix, weights, [key for key in everything if not key.startswith(prefix)])


def matching(weights: Weights, name: str | None = None) -> list[tuple[Reading, Fit]]:
    """The networks that a state_dict belongs to, with the shortest prefix removed that fits.

    A network with a head is preferred to one without, whatever the prefix.

    Args:
        weights: a state_dict.
        name: of the only network to try; None for all.
    """
    headless: list[tuple[Reading, Fit]] = []
    for level in readings(weights):
        found = [(reading, fit) for reading in level for fit in find_fits(reading.shapes, name)]
        if any(fit.num_classes is not None for _, fit in found):
            return [(reading, fit) for reading, fit in found if fit.num_classes is not None]
        headless = headless or found
    return headless
