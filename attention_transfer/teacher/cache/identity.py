"""Cache key: a hash of everything the teacher's output depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from attention_transfer.checkpoint import weights_digest
from attention_transfer.data.dataset import ImageDataset
from attention_transfer.features.attention_probabilities import AttentionLayout
from attention_transfer.features.maps import MapFunction
from attention_transfer.features.stages.stage import Stage
from attention_transfer.modules import unwrapped
from attention_transfer.networks.readout import NCHW
from attention_transfer.networks.registry import network_name
from attention_transfer.versions import version

FORMAT = "answers 1"


def _structure(teacher: nn.Module) -> str:
    """Digest of a network's repr, without the addresses of functions, which differ in every process."""
    printed = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(unwrapped(teacher)))
    return hashlib.sha256(printed.encode()).hexdigest()


def _tap(stage: Stage) -> str:
    return stage.name if stage.readout.name == NCHW.name else f"{stage.name} as {stage.readout.name}"


def cache_identity(
    teacher: nn.Module,
    stages: Sequence[Stage],
    functions: Sequence[MapFunction],
    dataset: ImageDataset,
    data_digest: str,
    *,
    views: int | str | None,
    layout: AttentionLayout | None = None,
    labels: Sequence[int] | None = None,
    **running: Any,
) -> str:
    """The cache key of a teacher's outputs for a data set.

    It covers the teacher's weights and buffers, its architecture and taps, what a map is, the files of the data set,
    how they are decoded, resized, augmented and normalised, how the teacher runs, and the versions of what computes.

    Args:
        teacher: the network, unfolded.
        stages: its tapped modules, with their readouts.
        functions: the map functions.
        dataset: images as the teacher sees them.
        data_digest: of its samples; see `samples_digest`.
        views: how many views of each image there are; 'warp' for whole images and their mirror images; None or 1
            where images are not augmented.
        layout: of the teacher's attention modules, where they are read.
        labels: of the samples in the teacher's own numbering, where a map depends on them.
        running: number format, folding, size of a chunk, device, the number format of the stored maps, and on CUDA
            the card's model and whether it computes in TF32.
    """
    is_augmented = dataset.augmentation is not None and views != "warp"
    content = {
        "format": FORMAT,
        "weights": weights_digest(teacher),
        "architecture": [network_name(teacher), _structure(teacher)],
        "taps": [_tap(stage) for stage in stages],
        "map": f"{' and '.join(function.name for function in functions)}, L2-normalised, times sqrt(HW)",
        "data": data_digest,
        "decoding": dataset.decoder.identity(),
        "mean": dataset.mean,
        "std": dataset.std,
        "views": views if dataset.augmentation is not None else 1,
        "augmentation": dataset.augmentation.identity() if is_augmented and dataset.augmentation else None,
        "augment seed": dataset.seed if is_augmented else None,
        "running": running,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
    }
    if layout is not None:
        content["attention"] = asdict(layout)
    if labels is not None:
        content["labels"] = hashlib.sha256(json.dumps(list(labels)).encode()).hexdigest()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
