"""`attention-transfer info`."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from cyclopts import Parameter

from attention_transfer import __version__
from attention_transfer.catalogue import NETWORKS
from attention_transfer.cli.flags import in_words
from attention_transfer.cli.tables import facts, heading, millions, percent, table
from attention_transfer.config import Config, resolve_config

LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "torchmetrics", "tensorboard", "pydantic", "cyclopts")
IMAGE_SIZE = 128


def info(checkpoint: Annotated[str | None, Parameter(help="show the content of this file instead")] = None, /) -> int:
    """Show versions, devices and the networks that can be built; or the content of a checkpoint.

    attention-transfer info
    attention-transfer info checkpoints/NAME_best.pth

    Multiply-adds are those of convolutions and matrix products.
    """
    if checkpoint is not None:
        show_file(checkpoint)
        return 0
    facts("versions", {"attention-transfer": __version__, "python": platform.python_version(), **_versions()})
    print()
    facts("machine", _machine())
    print()
    _show_networks()
    print("\nSettings and their defaults: attention-transfer train --help")
    return 0


def _versions() -> dict[str, str]:
    def of(library: str) -> str:
        try:
            return version(library)
        except PackageNotFoundError:
            return "not installed"

    return {library: of(library) for library in LIBRARIES}


def _machine() -> dict[str, object]:
    import torch

    from attention_transfer.devices import resolve_device

    gpus = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        **gpus,
        "device auto": f"is {resolve_device('auto')} here",
    }


def _show_networks() -> None:
    import torch

    from attention_transfer.evaluation import count_multiply_adds
    from attention_transfer.networks.registry import create_model, taps_of

    rows = []
    for family in NETWORKS:
        with torch.device("meta"):
            network = create_model(family.example)
            multiply_adds = count_multiply_adds(network, torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE))
        parameters = sum(parameter.numel() for parameter in network.parameters())
        stages = " ".join(taps_of(network) or ())
        rows.append([family.example, millions(parameters), millions(multiply_adds), stages, family.summary])
    heading(f"networks (with 10 classes; multiply-adds of an image of {IMAGE_SIZE}x{IMAGE_SIZE})")
    table(["name", "parameters", "multiply-adds", "stages", ""], rows)


def show_file(path: str) -> None:
    """Print the content of a checkpoint of this library, or of a file of bare weights.

    Raises:
        CheckpointError, TeacherError: it is neither.
    """
    from attention_transfer.checkpoint import is_checkpoint, read_checkpoint, read_plain

    if is_checkpoint(read_plain(path)):
        _show_checkpoint(path, read_checkpoint(path))
        return
    from attention_transfer.networks.registry import HeadlessCard, card_of
    from attention_transfer.teacher.loading import load_teacher_model

    network = load_teacher_model(path, device="cpu")
    card = card_of(network)
    assert card is not None
    parameters = sum(parameter.numel() for parameter in network.parameters())
    classes = "none: it has no head" if isinstance(card, HeadlessCard) else card.num_classes
    facts(
        f"{path}: bare weights",
        {"network": card.name, "classes": classes, "parameters": millions(parameters)},
    )


def _show_checkpoint(path: str, content: dict[str, Any]) -> None:
    from torch import Tensor

    from attention_transfer.checkpoint import balanced_accuracy_at_best, card_from

    card, config = card_from(content), resolve_config(content["config"])
    names = content["class_names"] or []
    state = content["model_state_dict"].values()
    training = content["training"] or {}
    balanced = balanced_accuracy_at_best(training.get("history", ()), training.get("best_epoch", 0))
    weights = sum(tensor.numel() for tensor in state if isinstance(tensor, Tensor))
    facts(
        f"{path}: a checkpoint of attention-transfer",
        {
            "network": card.name if card else "a module that was passed to train_at",
            "classes": f"{config.num_classes} ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})",
            "numbers": f"{millions(weights)} (parameters and running statistics)",
            **({"weights": "the average of the student's (ema)"} if content.get("weights") == "ema" else {}),
            "epochs": f"{content['epoch']} of {config.epochs}",
            "best accuracy": percent(content["best_accuracy"]),
            **({} if balanced is None else {"its balanced accuracy": percent(balanced)}),
        },
    )
    default = Config()
    changed = {
        key: in_words(getattr(config, key))
        for key in Config.model_fields
        if getattr(config, key) != getattr(default, key)
    }
    print()
    facts("settings that differ from the defaults", changed)
