"""Loading a network from a file, for the commands that use one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attention_transfer.config import Config, resolve_config

if TYPE_CHECKING:
    from torch import nn


def open_network(path: str, settings: Mapping[str, Any]) -> tuple[nn.Module, Config]:
    """Load a network, and its settings.

    Args:
        path: a checkpoint of this library, or a file of bare weights of a registered network.
        settings: as given on the command line; they override the checkpoint's. The device is never the checkpoint's,
            which may be of another machine.

    Raises:
        CheckpointError, TeacherError: the file holds no network that can be built.
        ConfigError: a setting is invalid.
    """
    given = resolve_config(settings)

    from attention_transfer.checkpoint import is_checkpoint, load_model, read_plain
    from attention_transfer.teacher.loading import load_teacher_model

    if not is_checkpoint(read_plain(path)):
        network = load_teacher_model(
            path, device=given.device, teacher_arch=given.teacher_arch, teacher_key=given.teacher_key
        )
        return network, given
    loaded = load_model(path, given.device)
    return loaded["model"], resolve_config({**loaded["config"], "device": given.device, **settings})
