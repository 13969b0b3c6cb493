"""Python objects between processes: over gloo, which waits for hours, whatever the group of the tensors is.

NCCL ends processes that have waited for ten minutes, as for a main process that decodes a million images. Here the
processes wait for each other before they come to tensors.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch.distributed import ProcessGroup

PATIENCE = timedelta(hours=24)

_groups: dict[str, tuple[ProcessGroup, Any]] = {}
"""The last group of all processes, and that of its objects, which lives as long."""


def object_group() -> Any:
    """The group of all processes for objects, made at the first call; every process must call this together."""
    everyone = torch.distributed.group.WORLD
    assert everyone is not None
    known = _groups.get("last")
    if known is None or known[0] is not everyone:
        known = everyone, torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
        _groups["last"] = known
    return known[1]


def broadcast(value: Any) -> Any:
    """The main process's `value`, in every process; every process must call this together."""
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, group=object_group(), device=torch.device("cpu"))
    return values[0]


def gather(value: Any) -> list[Any]:
    """Every process's `value`, by rank, in every process; every process must call this together."""
    group = object_group()
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value, group=group)
    return values
