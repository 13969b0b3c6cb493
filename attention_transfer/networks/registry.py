"""The registry of networks: building them by name, recognising them by their weights, adding a family.

A family is one file, which describes it as an `Architecture`; its module, name pattern, example and summary are in the
catalogue, which does not import torch. Networks of timm and torchvision need no entry; see `libraries`.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from importlib import import_module

from torch import nn

from attention_transfer.catalogue import NETWORKS, NetworkFamily, canonical_network_name, library_of
from attention_transfer.errors import ConfigError
from attention_transfer.modules import unwrapped
from attention_transfer.networks import libraries
from attention_transfer.networks.architecture import Architecture, Shapes
from attention_transfer.networks.published import load_pretrained
from attention_transfer.networks.readout import NCHW, Readout

logger = logging.getLogger(__name__)

_registered: dict[str, Architecture] = {}
"""Families added at run time, by the pattern of their names."""


@dataclass(frozen=True)
class ModelCard:
    """The data from which a network is rebuilt, saved in checkpoints; its attribute `card` if it was built by name.

    Attributes:
        name: as in the catalogue, or 'timm/NAME' or 'torchvision/NAME'.
        num_classes: number of logits.
        class_names: in the order of the logits; None where they are unknown.
        image_size: (H, W) for which a network of one size was built; None: its own, or any.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class HeadlessCard(ModelCard):
    """The card of a network whose weights came without a head that fits: its one logit is always 0."""


def create_model(
    name: str, num_classes: int = 10, weights: str | None = None, image_size: tuple[int, int] | None = None
) -> nn.Module:
    """A new network by its name: float images [B, 3, H, W] to logits [B, num_classes].

    Args:
        name: as in the catalogue, in any case: 'MultiBranchNet', 'ResNet18', 'CifarResNet-20', ...; or 'timm/NAME' or
            'torchvision/NAME'.
        num_classes: number of logits, at least 1.
        weights: pretrained weights by name: 'DEFAULT', an entry of torchvision such as 'IMAGENET1K_V1' (for ResNet18,
            ResNet50 and torchvision/NAME), a tag of timm (for timm/NAME). If they have another number of classes, only
            the head is newly initialised.
        image_size: (H, W) of the images; used for networks of timm and torchvision that are built for one size.

    Raises:
        ConfigError: an unknown name, a depth or width that the family does not have, fewer than one class,
            or weights that do not exist or cannot be fetched.

    Example:
        >>> create_model("cifarresnet-20", num_classes=4).card
        ModelCard(name='CifarResNet-20', num_classes=4, class_names=None, image_size=None)
    """
    if num_classes < 1:
        raise ConfigError(f"num_classes is {num_classes}; a network needs at least 1.")
    name = canonical_network_name(name)
    if all(library_of(name)):
        return _of_library(name, num_classes, weights, image_size)
    architecture = _architecture_of(name)
    model = _build(architecture, name, num_classes)
    if weights is not None:
        _load_pretrained(model, architecture, name, weights)
    model.card = ModelCard(name, num_classes)  # type: ignore[assignment]
    return model


def _of_library(name: str, num_classes: int, weights: str | None, image_size: tuple[int, int] | None) -> nn.Module:
    own = libraries.fixed_size(name)
    sized = None if own in (None, image_size) else image_size
    if weights is None:
        model = libraries.build(name, num_classes, sized)
    else:
        model = load_pretrained(name, num_classes, weights, sized)
    model.card = ModelCard(name, num_classes, image_size=sized)  # type: ignore[assignment]
    return model


def card_of(model: nn.Module) -> ModelCard | None:
    """The card of a network that was built by name, also inside wrappers; None for any other.

    A head that was replaced is taken into account: another Linear changes the number of classes; with anything else
    the network can no longer be built by name, and None is returned.
    """
    network = unwrapped(model)
    card = getattr(network, "card", None)
    if not isinstance(card, ModelCard):
        return None
    head = dict(network.named_modules()).get(_architecture_of(card.name).head)
    classes = libraries.classes_of_head(head)
    if classes is None:
        return None
    return card if classes == card.num_classes else ModelCard(card.name, classes, image_size=card.image_size)


def network_name(model: nn.Module) -> str:
    """The registered name of a network of ours, else the name of its class."""
    card = card_of(model)
    return type(unwrapped(model)).__name__ if card is None else card.name


def taps_of(model: nn.Module) -> tuple[str, ...] | None:
    """The stages of a registered network that was built by name, shallow to deep; None for any other."""
    card = card_of(model)
    return None if card is None else _architecture_of(card.name).taps or None


def readout_of(model: nn.Module) -> Readout:
    """The readout of a network's stages; [B, C, H, W] unchanged for one that was not built by name."""
    card = card_of(model)
    return NCHW if card is None else _architecture_of(card.name).readout


def recognise(shapes: Shapes) -> list[tuple[str, int]]:
    """The (name, num_classes) of every registered network whose state_dict has exactly these keys and shapes.

    Example:
        >>> weights = create_model("CifarResNet-20", num_classes=4).state_dict()
        >>> recognise({key: tuple(tensor.shape) for key, tensor in weights.items()})
        [('CifarResNet-20', 4)]
    """
    found = []
    for architecture in architectures():
        head = shapes.get(f"{architecture.head}.weight", ())
        if len(head) == 2:
            names = architecture.candidates(shapes)
            found += [(name, head[0]) for name in names if _fits(architecture, name, head[0], shapes)]
    return found


def register_network(architecture: Architecture, *, example: str, summary: str) -> None:
    """Add a family, so that its networks can be built, trained by name, and recognised from their weights.

    Args:
        architecture: how the family is built and recognised.
        example: a name in the family, in the spelling that errors and `attention-transfer info` show.
        summary: the family in half a sentence.

    Raises:
        ConfigError: the family or its example is registered already, the pattern does not match the example,
            or the example lacks a module that `taps` or `head` names.
    """
    for known in NETWORKS:
        if known.pattern == architecture.name_pattern or re.fullmatch(known.pattern, example, re.IGNORECASE):
            raise ConfigError(f"{example!r} is taken by the registered network {known.example}; choose another.")
    if re.fullmatch(architecture.name_pattern, example) is None:
        raise ConfigError(f"name_pattern {architecture.name_pattern!r} does not match its example {example!r}.")
    modules = dict(_on_meta(architecture, example, num_classes=2).named_modules())
    for module in (*architecture.taps, architecture.head):
        if module not in modules:
            raise ConfigError(f"{example} has no module {module!r}; name modules of its named_modules().")
    _registered[architecture.name_pattern] = architecture
    home = f"{architecture.build.__module__}:{architecture.build.__qualname__}"
    NETWORKS.append(NetworkFamily(home, architecture.name_pattern, example, summary))


def architectures() -> list[Architecture]:
    """Every registered family."""
    return [_architecture(family) for family in NETWORKS]


def expected_shapes(architecture: Architecture, name: str, num_classes: int) -> Shapes:
    """The keys and shapes of the state_dict of a network of a family, built on the meta device.

    Args:
        architecture: the family.
        name: of the network.
        num_classes: number of logits.
    """
    state = _on_meta(architecture, name, num_classes).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def shapes_by_name(card: ModelCard, num_classes: int) -> Shapes:
    """The keys and shapes of the state_dict of the network that a card names, with another number of classes.

    Args:
        card: of a network that was built by name.
        num_classes: number of logits.
    """
    return expected_shapes(_architecture_of(card.name), card.name, num_classes)


def _architecture_of(name: str) -> Architecture:
    if all(library_of(name)):
        return libraries.library_architecture(name)
    for family in NETWORKS:
        if re.fullmatch(family.pattern, name):
            return _architecture(family)
    raise ConfigError(f"the network {name!r} is not registered here; call register_network first.")


def _architecture(family: NetworkFamily) -> Architecture:
    if family.pattern in _registered:
        return _registered[family.pattern]
    module, _, name = family.home.partition(":")
    architecture: Architecture = getattr(import_module(module), name)
    return architecture


def _build(architecture: Architecture, name: str, num_classes: int) -> nn.Module:
    match = re.fullmatch(architecture.name_pattern, name)
    numbers = [None if number is None else int(number) for number in match.groups()] if match else []
    return architecture.build(*numbers, num_classes=num_classes)


def _on_meta(architecture: Architecture, name: str, num_classes: int) -> nn.Module:
    return libraries.without_memory(lambda: _build(architecture, name, num_classes))


def _fits(architecture: Architecture, name: str, num_classes: int, shapes: Shapes) -> bool:
    return expected_shapes(architecture, name, num_classes) == dict(shapes)


def _load_pretrained(model: nn.Module, architecture: Architecture, name: str, weights: str) -> None:
    if architecture.pretrained is None:
        have = ", ".join(known.name_pattern for known in architectures() if known.pretrained is not None)
        raise ConfigError(f"weights is {weights!r}, but {name} has no pretrained weights; {have} have.")
    state = architecture.pretrained(weights)
    head = f"{architecture.head}."
    fresh = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(head)}
    if any(state[key].shape != tensor.shape for key, tensor in fresh.items()):
        logger.info(
            "the head of %s %s tells other classes apart, so %s is newly initialised", name, weights, architecture.head
        )
        state |= fresh
    model.load_state_dict(state)
