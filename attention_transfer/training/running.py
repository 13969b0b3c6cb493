"""The teacher's network as a run has it: which modules are tapped, in which number format and memory format it runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.config import Config
from attention_transfer.devices import like_weights
from attention_transfer.errors import ConfigError
from attention_transfer.networks.registry import card_of
from attention_transfer.networks.stages import split_layers, stage_names
from attention_transfer.teacher.looking import TeacherRunner
from attention_transfer.training.runtime import Runtime


def make_runner(
    config: Config,
    teacher: nn.Module,
    images: Tensor,
    runtime: Runtime,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> TeacherRunner:
    """What runs the teacher in a run with these settings.

    Args:
        config: alpha, beta and layers are used.
        teacher: the network, on the device.
        images: some like those to come, to find its stages and to check its folding on.
        runtime: gives the memory format for a network that is not ours.
        autocast: makes the context that gives the number format.
    """
    images = like_weights(images, teacher)
    return TeacherRunner(
        teacher,
        _tapped(teacher, images, config),
        images,
        needs_logits=config.alpha > 0,
        autocast=autocast,
        memory_format=memory_format_of(teacher, runtime),
    )


def memory_format_of(teacher: nn.Module, runtime: Runtime) -> torch.memory_format:
    """Channels-last for networks of ours, whatever the student is: what they answer is kept for other runs as well."""
    return runtime.memory_format if card_of(teacher) is None else torch.channels_last


def _tapped(teacher: nn.Module, images: Tensor, config: Config) -> tuple[str, ...]:
    _, layers = split_layers(config.layers)
    try:
        return stage_names(teacher, images, layers)
    except ConfigError:
        if config.beta > 0:
            raise
        return ()
