"""Recognising and loading any teacher: our checkpoints, bare weights, torchvision's pretrained ones."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.checkpoint import RESAVE, card_from, is_checkpoint, load_weights, read_plain
from attention_transfer.config import canonical_network_name
from attention_transfer.devices import resolve_device
from attention_transfer.errors import CheckpointError, TeacherError
from attention_transfer.networks.registry import ModelCard, card_of, create_model, recognise

logger = logging.getLogger(__name__)

WRAPPING_KEYS = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.")
IMAGENET_CLASSES = 1000


def load_teacher_model(
    teacher_path: str | os.PathLike[str],
    num_classes: int | None = None,
    device: str | torch.device = "auto",
    *,
    teacher_arch: str | None = None,
) -> nn.Module:
    """A frozen teacher in eval mode, with its own head.

    Args:
        teacher_path: a checkpoint of ours; a file with a state_dict, bare or under one of the keys state_dict,
            model_state_dict, model or net, with or without 'module.' or '_orig_mod.' prefixes; or torchvision's
            pretrained weights by name, as in 'ResNet50:DEFAULT'.
        num_classes: the student's number of classes; another number in the teacher is logged, as attention
            transfer does not mind and only distillation (alpha > 0) does.
        device: 'auto', 'cpu', 'cuda', ...
        teacher_arch: the network's name, where the weights fit more than one.

    Raises:
        TeacherError: the file is missing, no registered network has these weights, several have and
            `teacher_arch` does not say which, or the file holds a pickled module.
    """
    teacher = _pretrained(str(teacher_path)) or _from_file(teacher_path, teacher_arch)
    card = card_of(teacher)
    if card is not None and num_classes is not None and card.num_classes != num_classes:
        logger.info(
            "the teacher tells %d classes apart and the student %d: attention transfer does not mind, "
            "distillation (alpha > 0) would",
            card.num_classes,
            num_classes,
        )
    return teacher.requires_grad_(False).eval().to(resolve_device(device))


def _pretrained(name: str) -> nn.Module | None:
    match = re.fullmatch(r"(ResNet18|ResNet50):(\w+)", name, flags=re.IGNORECASE)
    if match is None:
        return None
    return create_model(canonical_network_name(match[1]), IMAGENET_CLASSES, weights=match[2])


def _from_file(path: str | os.PathLike[str], teacher_arch: str | None) -> nn.Module:
    try:
        content = read_plain(path)
    except CheckpointError as error:
        raise TeacherError(f"teacher_model: {error}") from error
    card = card_from(content) if is_checkpoint(content) else None
    if card is not None and teacher_arch is not None and canonical_network_name(teacher_arch) != card.name:
        raise TeacherError(f"teacher_arch is {teacher_arch!r}, but {path} holds a {card.name}; leave teacher_arch out.")
    weights = _weights(content, path)
    if card is None:
        card = _recognised(weights, path, teacher_arch)
    teacher = create_model(card.name, card.num_classes)
    teacher.card = card  # type: ignore[assignment]
    load_weights(teacher, weights, str(path))
    return teacher


def _weights(content: Any, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    for key in WRAPPING_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise TeacherError(f"{path} holds no state_dict, neither bare nor under {', '.join(WRAPPING_KEYS)}. {RESAVE}")
    return {_without_prefixes(key): tensor for key, tensor in content.items()}


def _without_prefixes(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _recognised(weights: dict[str, Tensor], path: str | os.PathLike[str], teacher_arch: str | None) -> ModelCard:
    found = recognise({key: tuple(tensor.shape) for key, tensor in weights.items()})
    names = [name for name, _ in found]
    if teacher_arch is not None:
        wanted = canonical_network_name(teacher_arch)
        found = [(name, classes) for name, classes in found if name == wanted]
        if not found:
            fits = f"it fits {', '.join(names)}" if names else "it fits no registered network"
            raise TeacherError(f"teacher_arch is {wanted!r}, but {path} has other keys or shapes; {fits}.")
    if not found:
        raise TeacherError(
            f"{path} fits no registered network (its first keys are {', '.join(list(weights)[:4])}); hand your "
            "own module to train_at(teacher=...), or register its family with register_network."
        )
    if len(found) > 1:
        raise TeacherError(f"{path} fits {', '.join(names)}; say which with the key teacher_arch.")
    name, classes = found[0]
    logger.info("the teacher is recognised as %s with %d classes", name, classes)
    return ModelCard(name, classes)
