"""The classes of a network, and their names where they are known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import nn

from attention_transfer.class_names import Classes
from attention_transfer.config import Config
from attention_transfer.modules import unwrapped
from attention_transfer.networks.registry import card_of

IMAGENET_CLASSES = 1000


def network_classes(model: nn.Module, owner: str = "the network", names: Sequence[str] | None = None) -> Classes:
    """The classes of a network: those of its card, else those of the attribute `class_names` that a user has set.

    Args:
        model: any network, also inside wrappers.
        owner: what messages call it.
        names: names of its classes, which override both.
    """
    card = card_of(model)
    known = tuple(names or (card.class_names if card else None) or _user_class_names(model))
    if not known:
        return Classes(owner, count=card.num_classes if card else None)
    return Classes(owner, known, synonyms=_synonyms(known))


def students_classes(config: Config) -> Classes:
    """The classes of the student of a run."""
    return Classes("the student", config.class_names, config.num_classes)


def _user_class_names(model: nn.Module) -> tuple[str, ...]:
    names: Any = getattr(unwrapped(model), "class_names", None)
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    return tuple(names) if is_list and all(isinstance(name, str) for name in names) else ()


def _synonyms(names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    if len(names) != IMAGENET_CLASSES or names != imagenet_categories():
        return ()
    return (imagenet_synsets(),)


@cache
def imagenet_categories() -> tuple[str, ...]:
    """The 1000 classes of torchvision's pretrained weights, by torchvision's names: 'tench', 'goldfish', ..."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """The same classes by the names of ImageNet's folders: 'n01440764', 'n01443537', ..."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo().label_names())  # type: ignore[no-untyped-call]
