"""The head of a network: the layers that put out its logits."""

from __future__ import annotations

from typing import Any

from torch import nn

from attention_transfer.errors import ConfigError
from attention_transfer.modules import unwrapped
from attention_transfer.networks.libraries import classes_of_head
from attention_transfer.networks.registry import card_of, shapes_by_name

_SOME, _OTHER = 3, 5
"""Two numbers of classes."""


def head_names(network: nn.Module, num_classes: int) -> tuple[str, ...]:
    """The modules that put out a network's logits, of which there are several where it has a head for distillation too.

    Of a network that was built by name these are the modules whose shapes depend on the number of classes; of a module
    of timm's those that it calls its classifier; of any other the only Linear or 1x1 convolution that has as many
    outputs as there are classes.

    Args:
        network: any classifier, also inside wrappers.
        num_classes: K of its logits [B, K].

    Raises:
        ConfigError: another network has no such module, or several.
    """
    card = card_of(network)
    if card is not None:
        some, other = shapes_by_name(card, _SOME), shapes_by_name(card, _OTHER)
        return tuple(dict.fromkeys(key.rpartition(".")[0] for key in some if some[key] != other[key]))
    network = unwrapped(network)
    found = [name for name, module in network.named_modules() if classes_of_head(module) == num_classes]
    told = _of_timm(network)
    if told or len(found) == 1:
        return told or tuple(found)
    what = f"{', '.join(found)} could be it" if found else f"no Linear or 1x1 convolution has {num_classes} outputs"
    raise ConfigError(f"it is unknown which module of {type(network).__name__} is the head: {what}.")


def _of_timm(network: nn.Module) -> tuple[str, ...]:
    """The modules that a network of timm calls its classifier; () for any other network."""
    tell: Any = getattr(network, "get_classifier", None)
    told = tell() if callable(tell) else None
    heads = told if isinstance(told, tuple | list) else (told,)
    return tuple(name for name, module in network.named_modules() if name and any(module is head for head in heads))
