"""What is on disk and how it gets there and back: checkpoints of plain data and tensors.

A checkpoint is one dict, written by `torch.save` and read with `weights_only=True`. Its keys:

    format, version                    what this file is
    card                               name, num_classes, class_names of the network; None for a module of the user's
    model_state_dict                   the student's weights
    config                             the resolved configuration
    epoch, best_accuracy, class_names  completed epochs, best validation accuracy (fraction), names
    training                           what resuming needs; see attention_transfer.training.state
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attention_transfer.config import resolve_config
from attention_transfer.devices import resolve_device
from attention_transfer.errors import CheckpointError
from attention_transfer.networks.registry import ModelCard, create_model
from attention_transfer.taps import unwrapped

FORMAT = "attention-transfer checkpoint"
VERSION = 1

RESAVE = (
    "Re-save its weights where its class can be imported: "
    "torch.save(torch.load(path, weights_only=False).state_dict(), 'weights.pth')."
)


def read_plain(path: str | os.PathLike[str]) -> Any:
    """What a .pth (or .safetensors) file holds, on the CPU; no code in it is run.

    Raises:
        CheckpointError: the file is missing, unreadable, or holds pickled code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give the path of a checkpoint.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises UnpicklingError, RuntimeError, EOFError, OSError, ... depending on where it fails
        if "Unsupported global" in str(error):
            raise CheckpointError(f"{path} holds pickled code, which is not run. {RESAVE}") from error
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def write_checkpoint(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` holds either the whole new file or what it held before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o666 & ~_umask())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint of this library, as the dict that was written.

    Raises:
        CheckpointError: the file is missing, damaged, or not a checkpoint of this library.
    """
    content = read_plain(path)
    if not is_checkpoint(content):
        raise CheckpointError(
            f"{path} is not a checkpoint of attention-transfer; a file of bare weights can be a teacher_model."
        )
    if content["version"] > VERSION:
        raise CheckpointError(
            f"{path} was written in format {content['version']}, but this version of attention-transfer reads "
            f"up to {VERSION}; upgrade it."
        )
    return dict(content)


def is_checkpoint(content: object) -> bool:
    """Whether what a file holds is a checkpoint of this library."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def card_from(content: dict[str, Any]) -> ModelCard | None:
    """The description of a checkpoint's network; None for a module that the user brought."""
    card = content["card"]
    if card is None:
        return None
    names = card["class_names"]
    return ModelCard(card["name"], card["num_classes"], tuple(names) if names else None)


def load_weights(model: nn.Module, weights: dict[str, Any], source: str) -> None:
    """Load weights strictly.

    Raises:
        CheckpointError: keys or shapes differ.
    """
    try:
        unwrapped(model).load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{source} does not fit {type(unwrapped(model)).__name__}: {error}") from error


def load_model(
    path: str | os.PathLike[str], device: str | torch.device = "auto", *, model: nn.Module | None = None
) -> dict[str, Any]:
    """The network of a checkpoint, ready to use.

    Args:
        path: a checkpoint that `train_at` wrote.
        device: 'auto', 'cpu', 'cuda', ...
        model: for a checkpoint of a module that the user brought: a module of the same kind to be filled.

    Returns:
        a dict: model (in eval mode, on the device), config (dict), epoch (completed), best_accuracy (fraction),
        class_names (list of str).

    Raises:
        CheckpointError: the file is missing, damaged, not ours, or needs `model`.
    """
    content = read_checkpoint(path)
    card = card_from(content)
    if model is None:
        if card is None:
            raise CheckpointError(
                f"{path} holds the weights of a module that was handed to train_at; hand such a module to "
                "load_model(path, model=...) as well."
            )
        model = create_model(card.name, card.num_classes)
        model.card = card  # type: ignore[assignment]
    load_weights(model, content["model_state_dict"], str(path))
    return {
        "model": model.to(resolve_device(device)).eval(),
        "config": resolve_config(content["config"]).model_dump(),
        "epoch": content["epoch"],
        "best_accuracy": content["best_accuracy"],
        "class_names": list(content["class_names"] or []),
    }


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers with their names: equal networks have equal digests."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrapped(model).state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
