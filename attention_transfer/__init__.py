"""Attention transfer: a small image classifier learns to look where a large one looks.

    total = cross_entropy + alpha * KD + beta * AT

after Zagoruyko & Komodakis, "Paying More Attention to Attention" (ICLR 2017). The names below load torch on
first use, so that `import attention_transfer` and the command line's `--help` are instant.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from attention_transfer.config import DEFAULT_CONFIG, Config, create_at_config
from attention_transfer.errors import (
    AttentionTransferError,
    CacheError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    TeacherError,
    WriteError,
)

if "IPython" in sys.modules:
    # before timm and accelerate, which import tqdm too: a notebook without ipywidgets gets text bars and no warning
    import attention_transfer.progress  # noqa: F401

if TYPE_CHECKING:
    from attention_transfer.checkpoint import load_model
    from attention_transfer.data.loading.loaders import prepare_dataloaders, source_loaders
    from attention_transfer.data.loading.options import LoaderOptions
    from attention_transfer.data.sources.base import Source
    from attention_transfer.evaluation import evaluate_model
    from attention_transfer.features.maps import MapFunction, attention_map
    from attention_transfer.features.signals import Needs
    from attention_transfer.losses.attention import attention_loss
    from attention_transfer.losses.logits.kd import distillation_loss
    from attention_transfer.losses.term import LossInputs, LossTerm
    from attention_transfer.networks.architecture import Architecture
    from attention_transfer.networks.readout import NCHW, NHWC, Readout, tokens
    from attention_transfer.networks.registry import create_model, register_network
    from attention_transfer.teacher.loading import load_teacher_model
    from attention_transfer.training.callbacks.base import Callback
    from attention_transfer.training.own_loop import compute_at_loss, train_epoch, validate
    from attention_transfer.training.train import train_at
    from attention_transfer.visualization import attention_figure, extract_attention_maps, visualize_attention_maps

__version__ = "0.2.0"

_HOMES = {
    "Architecture": "networks.architecture",
    "Callback": "training.callbacks.base",
    "LossInputs": "losses.term",
    "LossTerm": "losses.term",
    "MapFunction": "features.maps",
    "NCHW": "networks.readout",
    "NHWC": "networks.readout",
    "Needs": "features.signals",
    "LoaderOptions": "data.loading.options",
    "Readout": "networks.readout",
    "Source": "data.sources.base",
    "source_loaders": "data.loading.loaders",
    "tokens": "networks.readout",
    "attention_figure": "visualization",
    "attention_loss": "losses.attention",
    "attention_map": "features.maps",
    "compute_at_loss": "training.own_loop",
    "create_model": "networks.registry",
    "distillation_loss": "losses.logits.kd",
    "evaluate_model": "evaluation",
    "extract_attention_maps": "visualization",
    "load_model": "checkpoint",
    "load_teacher_model": "teacher.loading",
    "prepare_dataloaders": "data.loading.loaders",
    "register_network": "networks.registry",
    "train_at": "training.train",
    "train_epoch": "training.own_loop",
    "validate": "training.own_loop",
    "visualize_attention_maps": "visualization",
}

__all__ = [
    "DEFAULT_CONFIG",
    "NCHW",
    "NHWC",
    "Architecture",
    "AttentionTransferError",
    "CacheError",
    "Callback",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataError",
    "DivergenceError",
    "LoaderOptions",
    "LossInputs",
    "LossTerm",
    "MapFunction",
    "Needs",
    "Readout",
    "Source",
    "TeacherError",
    "WriteError",
    "attention_figure",
    "attention_loss",
    "attention_map",
    "compute_at_loss",
    "create_at_config",
    "create_model",
    "distillation_loss",
    "evaluate_model",
    "extract_attention_maps",
    "load_model",
    "load_teacher_model",
    "prepare_dataloaders",
    "register_network",
    "source_loaders",
    "tokens",
    "train_at",
    "train_epoch",
    "validate",
    "visualize_attention_maps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
