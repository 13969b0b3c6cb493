"""ImageNet weights of an EfficientNet-Lite0 under foreign names: brought into order, checked, cut to two classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from attention_transfer import create_model, prepare_dataloaders
from attention_transfer.checkpoint import read_plain
from attention_transfer.errors import CheckpointError
from attention_transfer.modules import undisturbed
from attention_transfer.networks.class_lists import imagenet_categories
from attention_transfer.teacher.state_dicts import find_weights

NETWORK = "timm/tf_efficientnet_lite0"
HALF = (0.5, 0.5, 0.5)
IMAGENET_CLASS = {"ants": "ant", "bees": "bee"}
HEAD = "classifier"


def convert_by_order(weights: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights under foreign names as a state_dict of `network`: the i-th tensor becomes the network's i-th.

    Args:
        weights: tensors in the order in which the network's modules run; returned by name where the names are its own.
        network: left unchanged.

    Raises:
        CheckpointError: the numbers of tensors differ; or, of two with the same place, the shapes or the last parts of
            the names ('weight', 'running_mean', ...) do.
    """
    own = network.state_dict()
    if len(weights) != len(own):
        raise CheckpointError(f"the file has {len(weights)} tensors, but the network {len(own)}: give one of its kind.")
    if weights.keys() == own.keys():
        weights = {key: weights[key] for key in own}
    for place, (theirs, ours) in enumerate(zip(weights, own, strict=True)):
        shapes = list(weights[theirs].shape), list(own[ours].shape)
        if shapes[0] != shapes[1] or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise CheckpointError(
                f"tensor {place} of the file is {theirs} {shapes[0]}, but that of the network {ours} {shapes[1]}: they "
                "are not in the same order, so none is taken."
            )
    return dict(zip(own, weights.values(), strict=True))


def recognised(network: nn.Module, photos: Path) -> dict[str, float]:
    """The share of each class's photos (of train and val) whose first of ImageNet's 1,000 classes is 'ant' or 'bee'.

    Args:
        network: with the head of ImageNet; images [B, 3, 224, 224] to logits [B, 1000].
        photos: as `lay_out` made it.
    """
    loaders = prepare_dataloaders(photos, 16, num_workers=0, image_size=224, resize="crop", mean=HALF, std=HALF)
    right: dict[str, list[bool]] = {name: [] for name in IMAGENET_CLASS}
    rows = head_rows()
    with undisturbed(network):
        for images, labels in (batch for loader in loaders[:2] for batch in loader):
            for label, first in zip(labels.tolist(), network(images).argmax(1).tolist(), strict=True):
                right[list(IMAGENET_CLASS)[label]].append(first == rows[label])
    return {name: sum(hits) / len(hits) for name, hits in right.items()}


def head_rows() -> list[int]:
    """ImageNet's numbers of the photos' classes, in the order of the folders' names, by which these are numbered."""
    return [imagenet_categories().index(IMAGENET_CLASS[folder]) for folder in sorted(IMAGENET_CLASS)]


def with_two_classes(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the head's rows of the photos' classes alone."""
    rows = torch.tensor(head_rows())
    return {key: value[rows] if key.startswith(f"{HEAD}.") else value for key, value in weights.items()}


def open_weights(path: Path, photos: Path, output: Path) -> dict[str, float]:
    """Write the converted weights for two classes as `output`, if they know ants and bees; see `recognised`.

    Raises:
        CheckpointError: they do not fit, or recognise less than half of the photos of a class.
    """
    network = create_model(NETWORK, len(imagenet_categories()))
    converted = convert_by_order(find_weights(read_plain(path), str(path)).weights, network)
    network.load_state_dict(converted)
    shares = recognised(network, photos)
    if min(shares.values()) < 0.5:
        raise CheckpointError(
            f"with the weights of {path} the network calls these shares of the photos by their ImageNet class: "
            f"{shares}. Expected is most of them: the file holds other weights, or in another order."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.save(with_two_classes(converted), output)
    return shares
