"""The weights that a new run begins with, from any checkpoint: `init_from`, and `weights` or `model` that are files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention_transfer.catalogue import library_of
from attention_transfer.checkpoint import card_from, is_checkpoint, load_weights, read_plain
from attention_transfer.class_names import Classes, match
from attention_transfer.config import Config
from attention_transfer.errors import CheckpointError, ConfigError, DataError, TeacherError
from attention_transfer.modules import unwrapped
from attention_transfer.networks.fitting import COUNTER
from attention_transfer.networks.heads import head_names
from attention_transfer.networks.libraries import HOW_HEADS_BEGIN, renew_heads, weights_for_size
from attention_transfer.networks.registry import card_of
from attention_transfer.teacher.loading import OWN_KEY
from attention_transfer.teacher.state_dicts import Weights, find_weights, matching, readings

logger = logging.getLogger(__name__)

_SHOWN = 4


class _Found(NamedTuple):
    """The weights in a file, by the student's own keys, and its classes."""

    weights: dict[str, Any]
    classes: Classes


def load_initial_weights(student: nn.Module, config: Config, path: str, setting: str = "init_from") -> None:
    """Load the weights of a file into the student; what is done is logged.

    The file is a checkpoint of this library, or one of another training script, with the weights under any usual key
    and prefix. The head is matched by the names of the classes; where they are not the student's, and where their
    number differs or the file has no head, the student keeps its new one (initialised as torch does, in a network of
    timm or torchvision).

    Args:
        student: filled in place.
        config: uses num_classes and class_names.
        path: of the file.
        setting: that names it, for messages.

    Raises:
        CheckpointError: the file cannot be read, or holds another network.
    """
    try:
        content = read_plain(path)
        found = _own(content, student, path) if is_checkpoint(content) else _foreign(content, student, path)
    except (CheckpointError, TeacherError) as error:
        raise CheckpointError(f"{setting}: {error}") from error
    network = unwrapped(student)
    heads = _heads(network, config)
    own = network.state_dict()
    of_head = {key: value for key, value in own.items() if key.startswith(tuple(f"{head}." for head in heads))}
    head, sentence = _head(found, of_head, heads, config)
    body = {key: value for key, value in found.weights.items() if key not in of_head}
    kept = {key: value for key, value in own.items() if key in of_head or key.endswith(f".{COUNTER}")}
    load_weights(network, {**kept, **body, **head}, f"{setting}: {path}")
    card = card_of(network)
    if of_head and not head and card is not None and all(library_of(card.name)):
        renew_heads(network, card.name)
        sentence += f"; it begins {HOW_HEADS_BEGIN}"
    logger.info("the student begins with the weights of %s; %s", path, sentence)


def _heads(network: nn.Module, config: Config) -> tuple[str, ...]:
    try:
        return head_names(network, config.num_classes or 0)
    except ConfigError:
        return ()  # then all of the file must fit


def _own(content: dict[str, Any], student: nn.Module, path: str) -> _Found:
    """The weights of a checkpoint of this library."""
    card, own = card_from(content), card_of(student)
    if card is not None and own is not None and card.name != own.name:
        raise CheckpointError(f"{path} holds a {card.name}, but the student is a {own.name}; set model={card.name!r}.")
    if card is not None:
        return _Found(content[OWN_KEY], Classes(path, card.class_names, card.num_classes))
    names = content["config"].get("class_names")
    return _Found(content[OWN_KEY], Classes(path, tuple(names) if names else None, content["config"]["num_classes"]))


def _foreign(content: object, student: nn.Module, path: str) -> _Found:
    """The weights in a file of another training script."""
    found = find_weights(content, path, remedy="save those that are meant in a file of their own").weights
    card = card_of(student)
    if card is None:
        return _Found(_by_keys(found, unwrapped(student)), Classes(path))
    fits = matching(found, card.name)
    if len({reading.prefix for reading, _ in fits}) > 1:
        raise CheckpointError(f"{path} holds the weights of several networks; save those that are meant on their own.")
    if not fits:
        keys = ", ".join(list(found)[:_SHOWN])
        raise CheckpointError(f"{path} does not fit the student, a {card.name} (its first keys are {keys}).")
    reading, fit = fits[0]
    weights: dict[str, Any] = {key: reading.weights[original] for key, original in fit.keys.items()}
    if card.image_size is not None:
        weights = weights_for_size(card.name, weights, card.image_size)
    return _Found(weights, Classes(path, count=fit.num_classes))


def network_in(path: str) -> str:
    """The name of the network whose weights are in a file.

    Raises:
        CheckpointError: the file cannot be read, or fits no registered network, or several.
    """
    try:
        content = read_plain(path)
        card = card_from(content) if is_checkpoint(content) else None
        if card is not None:
            return card.name
        names = sorted({fit.name for _, fit in matching(find_weights(content, path).weights)})
    except (CheckpointError, TeacherError) as error:
        raise CheckpointError(f"model: {error}") from error
    if len(names) != 1:
        fits = f"fits {', '.join(names)}" if names else "fits no registered network"
        raise CheckpointError(f"model: {path} {fits}; say which with model=NAME, and set weights={path!r}.")
    return names[0]


def _by_keys(weights: Weights, network: nn.Module) -> Weights:
    """The tensors under the prefix with which most of their names are the network's."""
    own = network.state_dict().keys()
    every = [reading.weights for level in readings(weights) for reading in level]
    return max(every, key=lambda candidate: len(own & candidate.keys()) / len(own | candidate.keys()))


def _head(
    found: _Found, own: Mapping[str, Tensor], heads: Sequence[str], config: Config
) -> tuple[dict[str, Tensor], str]:
    """The head's weights for the student's classes, none where it keeps its new ones; and a sentence on it."""
    theirs = {key: found.weights[key] for key in own if key in found.weights}
    ours = Classes("the student", config.class_names, config.num_classes)
    new = f"its head {', '.join(heads)} is new"
    if not own:
        return {}, "with its head, whatever its classes are called"
    if theirs.keys() != own.keys():
        return {}, f"{new}: the file has none that fits"
    rows = {len(value) for value in theirs.values()}
    classes = found.classes if found.classes.number is not None else Classes(found.classes.owner, count=min(rows))
    try:
        matched = match(classes, ours)
    except DataError as error:
        return {}, f"{new}: {error}"
    if matched.positions is None:
        selected = theirs
    else:
        positions = torch.tensor(matched.positions)
        selected = {key: value[positions] for key, value in theirs.items()}
    if any(selected[key].shape != value.shape for key, value in own.items()):
        return {}, f"{new}: that of the file has another shape"
    return selected, f"its head, too: {matched.note}" if matched.note else "its head, too"
