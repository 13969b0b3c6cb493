"""Signals: a network's named outputs for a batch, and which of them a loss needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from attention_transfer.errors import ConfigError
from attention_transfer.features.maps import MapFunction

LOGITS, FEATURES, INPUT_GRADIENT = "logits", "features", "input_gradient"


@dataclass(frozen=True)
class Signal:
    """One named output of a network for a batch.

    Attributes:
        value: a tensor [B, ...], or one for each stage, shallow to deep.
        coverage: for each stage [B, H, W], 1 where the map is known and 0 where it is not; None: known everywhere.
        depends_on_label: whether the value depends on the label.
        exact_under_warp: whether the value for the whole image holds for any view of it. A map is warped, so it does
            not.
    """

    value: Tensor | tuple[Tensor, ...]
    coverage: tuple[Tensor, ...] | None = None
    depends_on_label: bool = False
    exact_under_warp: bool = False


@dataclass(frozen=True)
class Needs:
    """What a loss term needs of student and teacher.

    Attributes:
        maps: attention maps of the stages, by these functions.
        logits: logits [B, K] of the teacher; the student's are always available.
        features: the stages' own outputs [B, C, H, W]. They are too large to cache: the teacher runs on every batch.
        input_gradient: the gradient of each image's cross-entropy by its pixels [B, C, H, W], differentiable on
            the student's side. It depends on the label and is not cached.
        labels: the hard labels [B].
        epoch: the epoch, from 0, plus the fraction of it that is done.
    """

    maps: tuple[MapFunction, ...] = ()
    logits: bool = False
    features: bool = False
    input_gradient: bool = False
    labels: bool = False
    epoch: bool = False

    @classmethod
    def union(cls, needs: Iterable[Needs]) -> Self:
        """The union of several needs; each map function once, in order of first occurrence.

        Raises:
            ConfigError: two different map functions have the same name.
        """
        every = list(needs)
        maps = tuple(dict.fromkeys(function for each in every for function in each.maps))
        named = Counter(function.name for function in maps)
        if repeated := [name for name, count in named.items() if count > 1]:
            raise ConfigError(f"two different map functions are called {repeated[0]!r}; give each a name of its own.")
        return cls(
            maps=maps,
            logits=any(each.logits for each in every),
            features=any(each.features for each in every),
            input_gradient=any(each.input_gradient for each in every),
            labels=any(each.labels for each in every),
            epoch=any(each.epoch for each in every),
        )

    @property
    def stages(self) -> bool:
        """Whether stages are tapped at all."""
        return bool(self.maps) or self.features

    @property
    def uncacheable(self) -> tuple[str, ...]:
        """The needed signals that cannot be cached."""
        names = {FEATURES: self.features, INPUT_GRADIENT: self.input_gradient}
        return tuple(name for name, is_needed in names.items() if is_needed)

    @property
    def of_the_teacher(self) -> tuple[str, ...]:
        """The names of the signals that are needed of a teacher."""
        names = {LOGITS: self.logits, FEATURES: self.features, INPUT_GRADIENT: self.input_gradient}
        return (*(function.signal for function in self.maps), *(name for name, is_needed in names.items() if is_needed))


class Output(dict[str, Signal]):
    """A network's signals for a batch, by name; the maps of a function are under `MapFunction.signal`."""

    def tensor(self, name: str) -> Tensor:
        """A signal that is one tensor [B, ...].

        Raises:
            KeyError: there is no such signal.
            TypeError: it is one tensor a stage.
        """
        value = self[name].value
        if not isinstance(value, Tensor):
            raise TypeError(f"the signal {name!r} is one tensor for each of {len(value)} stages; use stages({name!r}).")
        return value

    def stages(self, name: str) -> tuple[Tensor, ...]:
        """A signal that is one tensor [B, ...] for each stage, shallow to deep; empty if there is no such signal.

        Raises:
            TypeError: it is a single tensor.
        """
        if name not in self:
            return ()
        value = self[name].value
        if isinstance(value, Tensor):
            raise TypeError(f"the signal {name!r} is a single tensor; use tensor({name!r}).")
        return value

    def maps(self, function: MapFunction) -> tuple[Tensor, ...]:
        """The attention maps [B, H, W] of each stage by a function."""
        return self.stages(function.signal)

    @property
    def logits(self) -> Tensor | None:
        """The logits [B, K]; None if they were not computed."""
        return self.tensor(LOGITS) if LOGITS in self else None


class StudentOutput(Output):
    """The student's signals for a batch, with gradients."""


class TeacherOutput(Output):
    """The teacher's signals for a batch, without gradients; empty without a teacher."""
