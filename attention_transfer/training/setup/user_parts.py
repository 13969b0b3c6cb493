"""The objects that a user passes to train_at beside the settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from attention_transfer.features.maps import MapFunction
from attention_transfer.losses.term import LossTerm
from attention_transfer.training.callbacks.base import Callback
from attention_transfer.training.optim import MakeOptimizer, MakeScheduler

Loader = Iterable[Any]


@dataclass(frozen=True)
class UserParts:
    """The user's own loaders, networks, terms, callbacks, optimizer and scheduler; see `train_at` for each."""

    train_loader: Loader | None = None
    val_loader: Loader | None = None
    test_loader: Loader | None = None
    student: nn.Module | None = None
    teacher: nn.Module | None = None
    terms: Sequence[LossTerm] = ()
    map_function: MapFunction | None = None
    callbacks: Sequence[Callback] = ()
    optimizer: MakeOptimizer | None = None
    scheduler: MakeScheduler | None = None
