"""Recognising and loading any teacher: our checkpoints, weights of any script, torchvision's pretrained ones."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.catalogue import TORCHVISION, canonical_network_name, library_of
from attention_transfer.checkpoint import card_from, is_checkpoint, load_weights, read_plain
from attention_transfer.config import resolve_config
from attention_transfer.devices import resolve_device
from attention_transfer.errors import CheckpointError, ConfigError, TeacherError
from attention_transfer.networks.architecture import Size
from attention_transfer.networks.class_lists import IMAGENET_CLASSES, imagenet_categories
from attention_transfer.networks.fitting import Fit, Misfit, nearest_network
from attention_transfer.networks.libraries import weights_for_size
from attention_transfer.networks.preprocessing import TrainedOn
from attention_transfer.networks.registry import HeadlessCard, ModelCard, card_of, create_model
from attention_transfer.teacher.library import image_size_of, pretrained_of_library, transforms_of
from attention_transfer.teacher.names import pretrained_weights, what_it_may_be
from attention_transfer.teacher.state_dicts import Found, Reading, Weights, find_weights, matching, readings

logger = logging.getLogger(__name__)

OWN_KEY = "model_state_dict"
_NEAR = 0.3
"""Least fraction of matching keys for a network to be named as the nearest."""
_SHOWN = 4


def load_teacher_model(
    teacher_path: str | os.PathLike[str],
    num_classes: int | None = None,
    device: str | torch.device = "auto",
    *,
    teacher_arch: str | None = None,
    teacher_key: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """A frozen teacher in eval mode, with its own head.

    In a file of another training script the network is recognised from its weights, under whatever key and
    whatever prefix (module., model., backbone., ...); `find_weights` says which are used if there are several. A Linear
    of another name is used as the head. Where the head is missing or has several layers, the teacher can be used for
    attention transfer only: its card is a `HeadlessCard`.

    Args:
        teacher_path: a checkpoint of this library; a .pth or .safetensors file with the weights of a registered
            network, or of the network of timm or torchvision that `teacher_arch` names; or pretrained weights by name:
            'timm/NAME' (with or without a tag), 'torchvision/NAME', 'ResNet50:DEFAULT'.
        num_classes: the student's number of classes; if the teacher's differs, this is logged: attention transfer
            allows it, distillation (alpha > 0) does not.
        device: 'auto', 'cpu', 'cuda', ...
        teacher_arch: the network's name, where the weights fit more than one.
        teacher_key: the key of the weights in the file, dotted where they are nested, if it holds several.
        image_size: (H, W) for which a network of timm or torchvision of one size is built, its weights resampled; None:
            its own.

    Raises:
        TeacherError: the file is missing, no registered network has these weights, several have and
            `teacher_arch` or `teacher_key` does not say which, or reading the file would run code.
    """
    name = str(teacher_path)
    _refuse_beside_a_name(name, teacher_arch=teacher_arch, teacher_key=teacher_key)
    teacher = _of_library(name, image_size) or _pretrained(name)
    teacher = teacher or _from_file(teacher_path, teacher_arch, teacher_key, image_size)
    card = card_of(teacher)
    has_head = card is not None and not isinstance(card, HeadlessCard)
    if card is not None and has_head and num_classes is not None and card.num_classes != num_classes:
        logger.info(
            "the teacher tells %d classes apart and the student %d: attention transfer allows that, "
            "distillation (alpha > 0) does not",
            card.num_classes,
            num_classes,
        )
    return teacher.requires_grad_(False).eval().to(resolve_device(device))


def _refuse_beside_a_name(name: str, **settings: str | None) -> None:
    """Refuse settings that say what is in a file, where the teacher is named and none is read.

    Raises:
        TeacherError: one is given; or there are no pretrained weights of such a name.
    """
    if not all(library_of(name.partition(":")[0])) and _named_weights(name) is None:
        return
    for key, value in settings.items():
        if value is not None:
            raise TeacherError(
                f"{key} is {value!r}, but teacher_model is {name!r}, pretrained weights by name and no file; leave "
                f"{key} out, or give the path of a file."
            )


def _of_library(name: str, image_size: Size | None) -> nn.Module | None:
    """A pretrained network of timm or torchvision; None for any other name. Its prefix wins over a folder's name."""
    name, _, weights = name.partition(":")
    if not all(library_of(name)):
        return None
    try:
        return pretrained_of_library(canonical_network_name(name), weights or "DEFAULT", image_size)
    except ConfigError as error:
        raise TeacherError(f"teacher_model: {error}") from error


def _named_weights(name: str) -> tuple[str, str] | None:
    try:
        return pretrained_weights(name)
    except ConfigError as error:
        raise TeacherError(str(error)) from error


def _pretrained(name: str) -> nn.Module | None:
    named = _named_weights(name)
    if named is None:
        return None
    try:
        teacher = create_model(named[0], IMAGENET_CLASSES, weights=named[1])
    except ConfigError as error:
        raise TeacherError(str(error)) from error
    teacher.card = ModelCard(named[0], IMAGENET_CLASSES, imagenet_categories())  # type: ignore[assignment]
    teacher.trained_on = transforms_of(f"{TORCHVISION}/{named[0].lower()}", named[1])  # type: ignore[assignment]
    return teacher


def _from_file(
    path: str | os.PathLike[str], teacher_arch: str | None, teacher_key: str | None, image_size: Size | None
) -> nn.Module:
    if not Path(path).is_file():
        raise TeacherError(what_it_may_be(str(path)))
    try:
        content = read_plain(path)
        if is_checkpoint(content):
            return _own(content, str(path), teacher_arch, teacher_key)
    except CheckpointError as error:
        raise TeacherError(f"teacher_model: {error}") from error
    return _recognised(find_weights(content, str(path), teacher_key), str(path), teacher_arch, image_size)


def _own(content: dict[str, Any], path: str, teacher_arch: str | None, teacher_key: str | None) -> nn.Module:
    """The network of a checkpoint of this library."""
    if teacher_key not in (None, OWN_KEY):
        raise TeacherError(
            f"teacher_key is {teacher_key!r}, but {path} is a checkpoint of attention-transfer with its weights "
            f"under {OWN_KEY}; leave teacher_key out."
        )
    card = card_from(content)
    if card is None:
        return _recognised(find_weights(content, path, OWN_KEY), path, teacher_arch)
    if teacher_arch is not None and canonical_network_name(teacher_arch) != card.name:
        raise TeacherError(f"teacher_arch is {teacher_arch!r}, but {path} holds a {card.name}; leave teacher_arch out.")
    teacher = create_model(card.name, card.num_classes, image_size=card.image_size)
    teacher.card = card  # type: ignore[assignment]
    load_weights(teacher, content[OWN_KEY], path)
    settings = content.get("config") or {}
    seen = resolve_config({key: settings[key] for key in ("mean", "std") if key in settings})
    teacher.trained_on = TrainedOn(seen.mean, seen.std, f"its checkpoint {path}")  # type: ignore[assignment]
    return teacher


def _recognised(found: Found, path: str, teacher_arch: str | None, image_size: Size | None = None) -> nn.Module:
    wanted = None if teacher_arch is None else canonical_network_name(teacher_arch)
    fits = matching(found.weights, wanted)
    if not fits:
        raise TeacherError(_no_network(found.weights, path, wanted))
    prefixes = {reading.prefix for reading, _ in fits}
    if len(prefixes) > 1:
        keys = [".".join(filter(None, (found.key, prefix.rstrip(".")))) for prefix in prefixes]
        raise TeacherError(
            f"{path} holds the weights of several networks: {', '.join(sorted(keys))}; say which with the key "
            "teacher_key."
        )
    if len(fits) > 1:
        names = ", ".join(fit.name for _, fit in fits)
        raise TeacherError(f"{path} fits {names}; say which with the key teacher_arch.")
    [(reading, fit)] = fits
    _log_recognised(reading, fit)
    return _built(reading.weights, fit, path, image_size)


def _log_recognised(reading: Reading, fit: Fit) -> None:
    if reading.beside:
        logger.info(
            "the teacher's weights are those whose names begin with %r; left out are %s",
            reading.prefix, _some(reading.beside),
        )  # fmt: skip
    if fit.num_classes is None:
        logger.warning(
            "the teacher is recognised as %s; its file has %s, so that its head stays empty: it is good for attention "
            "transfer alone, not for distillation (alpha > 0)",
            fit.name, fit.head,
        )  # fmt: skip
        return
    head = f"; its head is {fit.head}" if fit.head else ""
    logger.info("the teacher is recognised as %s with %d classes%s", fit.name, fit.num_classes, head)


def _built(weights: Weights, fit: Fit, path: str, image_size: Size | None) -> nn.Module:
    classes = fit.num_classes or 1
    teacher = create_model(fit.name, classes, image_size=image_size)
    size = image_size_of(teacher)
    kind = ModelCard if fit.num_classes else HeadlessCard
    teacher.card = kind(fit.name, classes, image_size=size)  # type: ignore[assignment]
    # what a file lacks, counters and heads, is zero and not drawn: equal files give equal teachers
    state: dict[str, Tensor] = {key: torch.zeros_like(tensor) for key, tensor in teacher.state_dict().items()}
    known: dict[str, Any] = {key: weights[original] for key, original in fit.keys.items()}
    state |= known if size is None else weights_for_size(fit.name, known, size)
    load_weights(teacher, state, path)
    return teacher


def _no_network(weights: Weights, path: str, wanted: str | None) -> str:
    """Why no network can be built, with the one that is nearest and how the file differs from it."""
    near = _nearest(weights, wanted)
    if wanted is not None:
        names = ", ".join(dict.fromkeys(fit.name for _, fit in matching(weights)))
        fits = f"it fits {names}" if names else "it fits no registered network"
        differs = f" ({near.in_words()})" if near is not None else ""
        return f"teacher_arch is {wanted!r}, but {path} has other keys or shapes{differs}; {fits}."
    nearest = ""
    if near is not None and near.share >= _NEAR:
        nearest = f" The nearest is {near.name}: {near.matching} tensors agree; {near.in_words()}."
    return (
        f"{path} fits no registered network (its first keys are {_some(list(weights))}).{nearest} Hand your own module "
        "to train_at(teacher=...), or register its family with register_network."
    )


def _nearest(weights: Weights, wanted: str | None) -> Misfit | None:
    near = [
        misfit
        for level in readings(weights)
        for reading in level
        if (misfit := nearest_network(reading.shapes, wanted)) is not None
    ]
    return max(near, key=lambda misfit: misfit.share, default=None)


def _some(keys: list[str]) -> str:
    return f"{', '.join(keys[:_SHOWN])}{f' and {len(keys) - _SHOWN} more' if len(keys) > _SHOWN else ''}"
