"""A pretrained network of timm or torchvision as a teacher: with its own head and classes, or known to have none."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attention_transfer.catalogue import TIMM, library_of
from attention_transfer.networks.architecture import Size
from attention_transfer.networks.class_lists import IMAGENET_CLASSES, imagenet_categories
from attention_transfer.networks.libraries import heads_of
from attention_transfer.networks.preprocessing import TrainedOn
from attention_transfer.networks.published import published_classes, torchvision_weights
from attention_transfer.networks.registry import HeadlessCard, ModelCard, card_of, create_model


def pretrained_of_library(name: str, weights: str = "DEFAULT", image_size: Size | None = None) -> nn.Module:
    """A pretrained teacher of timm or torchvision: images [B, 3, H, W] to the logits [B, K] of its own classes.

    A backbone without a head, as DINO's, has a `HeadlessCard`: its one logit is always 0.

    Args:
        name: 'timm/NAME' or 'torchvision/NAME'.
        weights: 'DEFAULT', a tag of timm, an entry of torchvision.
        image_size: (H, W) for which a network of one size is built; None: its own.

    Raises:
        ConfigError: there is no such network, or its weights can be neither read nor fetched.
    """
    classes = published_classes(name, weights)
    teacher = create_model(name, classes or 1, weights=weights, image_size=image_size)
    size = image_size_of(teacher)
    if library_of(name)[0] != TIMM:
        teacher.trained_on = transforms_of(name, weights)  # type: ignore[assignment]
    if classes:
        teacher.card = ModelCard(name, classes, _class_names(name, weights, classes, teacher), size)  # type: ignore[assignment]
        return teacher
    empty_heads(teacher, name)
    teacher.card = HeadlessCard(name, 1, image_size=size)  # type: ignore[assignment]
    return teacher


def image_size_of(network: nn.Module) -> Size | None:
    """The image size for which a network was built by name; None for its own, or any."""
    card = card_of(network)
    return None if card is None else card.image_size


def transforms_of(name: str, weights: str) -> TrainedOn:
    """The normalisation of torchvision's pretrained weights.

    Args:
        name: 'torchvision/NAME'.
        weights: 'DEFAULT' or an entry.
    """
    transforms = torchvision_weights(library_of(name)[1], weights).transforms()
    return TrainedOn(tuple(transforms.mean), tuple(transforms.std), "torchvision's weights")


def empty_heads(network: nn.Module, name: str) -> None:
    """Set the heads of a library's network to zero: equal files then give equal teachers."""
    with torch.no_grad():
        for head in heads_of(name):
            for parameter in network.get_submodule(head).parameters():
                parameter.zero_()


def _class_names(name: str, weights: str, classes: int, teacher: nn.Module) -> tuple[str, ...] | None:
    """ImageNet's classes, where the weights are known to tell these apart; None where nothing is known."""
    if classes != IMAGENET_CLASSES:
        return None
    library, _ = library_of(name)
    if library != TIMM:
        return imagenet_categories()
    config: Any = getattr(teacher, "pretrained_cfg", {})
    tag = str(config.get("tag") or "")
    return imagenet_categories() if tag.endswith("in1k") or "in1k_" in tag or tag.startswith("tv_") else None
