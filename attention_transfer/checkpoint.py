"""Reading and writing checkpoints of plain data and tensors.

A checkpoint is one dict, written by `torch.save`, sealed with a digest (see attention_transfer.seal), and read with
`weights_only=True` after the digest was verified. Its keys:

    format, version                    the kind of file
    card                               name, num_classes, class_names of the network; None for a user's module
    model_state_dict                   the weights to use: the student's, or their average (EMA)
    weights                            which of them, 'student' or 'ema'; absent in files of version 0.1
    config                             the resolved configuration
    epoch, best_accuracy, class_names  completed epochs, best validation accuracy (fraction), names
    training                           the state to resume; see attention_transfer.training.checkpointing.state
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from attention_transfer.class_names import numbers_as_names
from attention_transfer.config import resolve_config
from attention_transfer.data.decoding.depth import FULL
from attention_transfer.devices import resolve_device
from attention_transfer.errors import CheckpointError, ConfigError, VersionError
from attention_transfer.files import write_atomically
from attention_transfer.modules import unwrapped
from attention_transfer.networks.registry import ModelCard, create_model
from attention_transfer.pickled import look_into, refusal
from attention_transfer.plain import check_plain
from attention_transfer.seal import ends_unsealed, is_intact, is_sealed, seal
from attention_transfer.unpickling import load_restricted

FORMAT = "attention-transfer checkpoint"
VERSION = 2
SEALED_SINCE = 2

_KEYS: dict[str, tuple[type, ...]] = {
    "version": (int,),
    "card": (dict, type(None)),
    "model_state_dict": (dict,),
    "config": (dict,),
    "epoch": (int,),
    "best_accuracy": (float, int),
    "class_names": (list, tuple, type(None)),
    "training": (dict, type(None)),
}
_TRAINING_KEYS: dict[str, tuple[type, ...]] = {
    "optimizer": (dict,),
    "scheduler": (dict,),
    "scaler": (dict, type(None)),
    "teacher_digest": (str, type(None)),
    "data_digest": (str, type(None)),
    "step": (int,),
    "best_epoch": (int,),
    "best_weights": (dict, type(None)),
    "history": (list,),
    "unfinished": (dict, type(None)),
    "random": (dict,),
    "made_with": (dict,),
}
_NEWER_TRAINING_KEYS: dict[str, tuple[type, ...]] = {
    "loss": (dict,),
    "stateful": (dict,),
    "class_weights": (list, type(None)),
    "frozen": (list,),
    "ema": (dict, type(None)),
}
"""Keys that checkpoints of version 0.1 lack."""

_BEFORE_THESE_SETTINGS: dict[str, Any] = {
    "pixel_range": FULL, "val_fraction": 0.15, "test_fraction": 0.15,
    "teacher_mean": "run", "teacher_std": "run", "teacher_image_size": "run",
}  # fmt: skip
"""What was done before these settings existed."""


def write_checkpoint(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write a checkpoint atomically: `path` holds either the whole new file or its previous content.

    Raises:
        CheckpointError: `content` has an object other than plain data and tensors, which could not be read again.
        WriteError: it cannot be written; the message names the path, its bytes, the reason and the remedy.
    """
    check_plain(content)
    # in memory first: a full disk then raises its own error, with the bytes that the file needs
    archive = BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **content}, archive)
    comment = seal(archive)
    write_atomically(path, archive.getbuffer(), comment, setting="save_dir")


def read_plain(path: str | os.PathLike[str]) -> Any:
    """The content of a .pth or .safetensors file, on the CPU; no code in it is run.

    A checkpoint of this library is verified before it is read; other files have no digest.

    Raises:
        CheckpointError: the file is missing, unreadable, corrupt, or holds pickled code.
    """
    with _opened(path) as file:
        if is_sealed(file):
            _verify(file, path)
            return _parsed(file, path)
        file.seek(0)
        content = _parsed(file, path)
    if is_checkpoint(content) and _version(content) >= SEALED_SINCE:
        raise CheckpointError(_damaged(path))
    return content


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint of this library, as the dict that was written; verified before it is parsed.

    Raises:
        CheckpointError: the file is missing, corrupt, of another version, or not a checkpoint of this library.
    """
    with _opened(path) as file:
        if not is_sealed(file):
            raise _unsealed(file, path)
        _verify(file, path)
        content = _parsed(file, path)
    if not is_checkpoint(content):
        raise CheckpointError(_not_ours(path))
    if _version(content) > VERSION:
        raise VersionError(
            f"{path} was written in format {content['version']}, but this version of attention-transfer reads "
            f"up to {VERSION}; upgrade it."
        )
    _check_keys(content, _KEYS, path)
    if content["training"] is not None:
        training = content["training"]
        newer = {key: types for key, types in _NEWER_TRAINING_KEYS.items() if key in training}
        _check_keys(training, _TRAINING_KEYS | newer, path)
    config = {**_BEFORE_THESE_SETTINGS, **content["config"]}
    if _names_are_made_up(content):
        config["class_names"] = None
    return {**content, "config": config}


def _names_are_made_up(content: dict[str, Any]) -> bool:
    """Whether the classes have no names; before version 0.2 they were then stored as '0', '1', ..."""
    training, names = content.get("training"), content.get("class_names")
    if not isinstance(training, dict) or "data_classes" in training or training.get("data_digest") is not None:
        return False
    return isinstance(names, list | tuple) and tuple(names) == numbers_as_names(len(names))


def _check_keys(content: dict[str, Any], keys: dict[str, tuple[type, ...]], path: str | os.PathLike[str]) -> None:
    for key, types in keys.items():
        if key not in content or not isinstance(content[key], types):
            found = f"a {type(content[key]).__name__}" if key in content else "missing"
            raise CheckpointError(f"{path} is malformed: {key!r} is {found}. Resume from another checkpoint.")


def is_checkpoint(content: object) -> bool:
    """Whether the content of a file is a checkpoint of this library."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    if not Path(path).is_file():
        raise CheckpointError(f"{path} is not a file; give the path of a checkpoint.")
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def _verify(file: BinaryIO, path: str | os.PathLike[str]) -> None:
    try:
        intact = is_intact(file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if not intact:
        raise CheckpointError(_damaged(path))


def _parsed(file: BinaryIO, path: str | os.PathLike[str]) -> Any:
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load

            return load(file.read())
        return load_restricted(file)
    except Exception as error:
        # torch.load raises UnpicklingError, RuntimeError, EOFError, OSError, ... depending on where it fails
        held = look_into(file) if _is_refusal(error) else None
        if held is not None:
            raise CheckpointError(refusal(str(path), held, _reason(error))) from error
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {_reason(error)}") from error


def _is_refusal(error: Exception) -> bool:
    """Whether torch refuses to read a file, rather than fails to, because it is corrupt or the disk fails."""
    return isinstance(error, UnpicklingError) or "weights_only" in str(error)


def _reason(error: Exception) -> str:
    # torch puts its advice to run the file's code before or after the reason
    reason = str(error).rpartition("WeightsUnpickler error: ")[2].partition("In PyTorch 2.6")[0].strip()
    return (reason.splitlines() or [""])[0] or type(error).__name__


def _version(content: dict[str, Any]) -> int:
    version = content.get("version")
    return version if isinstance(version, int) else SEALED_SINCE


def _unsealed(file: BinaryIO, path: str | os.PathLike[str]) -> CheckpointError:
    """The error for a file without a digest, chosen from its bytes without parsing it."""
    ends = ends_unsealed(file)
    file.seek(0)
    # torch.save stores text unencoded
    if FORMAT.encode() not in file.read():
        return CheckpointError(_not_ours(path))
    if not ends:
        return CheckpointError(_damaged(path))
    return VersionError(
        f"{path} has no digest: it was written in format 1, and this version of attention-transfer reads format "
        f"{VERSION}. Train again, or use the version that wrote it; as a teacher_model it can still be read."
    )


def _not_ours(path: str | os.PathLike[str]) -> str:
    return (
        f"{path} is not a checkpoint of attention-transfer, or was cut short; a file of bare weights can be a "
        "teacher_model."
    )


def _damaged(path: str | os.PathLike[str]) -> str:
    return f"{path} is damaged or was cut short: its bytes are not those of its digest. Resume from another checkpoint."


def card_from(content: dict[str, Any]) -> ModelCard | None:
    """The description of a checkpoint's network; None for a user's module.

    Raises:
        CheckpointError: it is malformed.
    """
    card = content["card"]
    if card is None:
        return None
    name, num_classes, names = (card.get(key) for key in ("name", "num_classes", "class_names"))
    size = card.get("image_size")
    if not isinstance(name, str) or not isinstance(num_classes, int) or not isinstance(names, list | tuple | None):
        raise CheckpointError(f"a checkpoint is malformed: its card is {card!r}.")
    known = tuple(names) if names and not _names_are_made_up(content) else None
    return ModelCard(name, num_classes, known, None if size is None else (int(size[0]), int(size[1])))


def load_weights(model: nn.Module, weights: dict[str, Any], source: str) -> None:
    """Load weights strictly.

    Args:
        model: filled in place.
        weights: a state_dict.
        source: where they are from, for the message.

    Raises:
        CheckpointError: keys or shapes differ.
    """
    try:
        unwrapped(model).load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:  # AttributeError: a key is not a string
        raise CheckpointError(f"{source} does not fit {type(unwrapped(model)).__name__}: {error}") from error


def load_model(
    path: str | os.PathLike[str], device: str | torch.device = "auto", *, model: nn.Module | None = None
) -> dict[str, Any]:
    """The network of a checkpoint, ready to use.

    Args:
        path: a checkpoint written by `train_at`.
        device: 'auto', 'cpu', 'cuda', ...
        model: for a checkpoint of a user's module: a module of the same kind, to be filled.

    Returns:
        a dict: model (in eval mode, on the device), config (dict), epoch (completed), best_accuracy (fraction),
        best_balanced_accuracy (of that epoch; see `balanced_accuracy_at_best`), class_names (list of str; '0', '1', ...
        if the classes have no names).

    Raises:
        CheckpointError: the file is missing, corrupt, not a checkpoint of this library, or needs `model`.
    """
    content = read_checkpoint(path)
    card = card_from(content)
    if model is None and card is None:
        raise CheckpointError(
            f"{path} holds the weights of a module that was passed to train_at; pass such a module to "
            "load_model(path, model=...) as well."
        )
    try:
        config = resolve_config(content["config"])
        if model is None:
            assert card is not None
            model = create_model(card.name, card.num_classes, image_size=card.image_size)
            model.card = card  # type: ignore[assignment]
    except ConfigError as error:
        raise CheckpointError(f"{path} is malformed, or of another version of attention-transfer: {error}") from error
    load_weights(model, content["model_state_dict"], str(path))
    training = content["training"] or {}
    return {
        "model": model.to(resolve_device(device)).eval(),
        "config": config.model_dump(),
        "epoch": content["epoch"],
        "best_accuracy": content["best_accuracy"],
        "best_balanced_accuracy": balanced_accuracy_at_best(training.get("history", ()), training.get("best_epoch", 0)),
        "class_names": list(content["class_names"] or []),
    }


def balanced_accuracy_at_best(history: Sequence[Mapping[str, float]], best_epoch: int) -> float | None:
    """The balanced validation accuracy, a fraction, of the epoch with the best accuracy.

    Args:
        history: one record per epoch.
        best_epoch: from 1; 0 before the first.

    Returns:
        the figure; None without validation, and in runs of older versions of this library.
    """
    return history[best_epoch - 1].get("val_balanced_accuracy") if 0 < best_epoch <= len(history) else None


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all weights, buffers and extra states with their names: equal networks have equal digests."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrapped(model).state_dict().items(), key=lambda entry: entry[0]):
        if not isinstance(tensor, Tensor):
            archive = BytesIO()
            torch.save(tensor, archive)
            digest.update(name.encode() + archive.getbuffer())
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
