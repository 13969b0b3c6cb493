"""Signals: a network's named outputs for a batch, and which of them a loss needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import Tensor

from attention_transfer.errors import ConfigError
from attention_transfer.features.maps import ATTENTION, FEATURES, INPUT_GRADIENT, MapFunction

__all__ = [
    "ATTENTION",
    "FEATURES",
    "INPUT_GRADIENT",
    "LOGITS",
    "Needs",
    "Output",
    "Signal",
    "StudentOutput",
    "TeacherOutput",
    "known_images",
    "map_signal",
]

LOGITS = "logits"


@dataclass(frozen=True)
class Signal:
    """One named output of a network for a batch.

    Attributes:
        value: a tensor [B, ...], or one for each stage, shallow to deep.
        coverage: for each stage [B, H, W], 1 where the map is known and 0 where it is not; None: known everywhere.
        depends_on_label: whether the value depends on the label. A cache is then one of these labels, and the value
            cannot be warped: the gradient at a view is another than at the whole image.
        exact_under_warp: whether the value for the whole image holds for any view of it. Maps are warped; of any other
            value that does not hold, `augment_views='warp'` says so.
    """

    value: Tensor | tuple[Tensor, ...]
    coverage: tuple[Tensor, ...] | None = None
    depends_on_label: bool = False
    exact_under_warp: bool = False

    def rows(self, which: Tensor) -> Signal:
        """The signal of some images of the batch, by their positions [n]."""
        value = self.value[which] if isinstance(self.value, Tensor) else tuple(stage[which] for stage in self.value)
        coverage = None if self.coverage is None else tuple(cells[which] for cells in self.coverage)
        return replace(self, value=value, coverage=coverage)


@dataclass(frozen=True)
class Needs:
    """What a loss term needs of student and teacher.

    Attributes:
        maps: attention maps of the stages, by these functions.
        logits: logits [B, K] of the teacher; the student's are always available.
        features: the stages' own outputs [B, C, H, W]. They are too large to cache: the teacher runs on every batch.
        input_gradient: the gradient of each image's cross-entropy by its pixels [B, C, H, W], differentiable on
            the student's side. It depends on the label and is not cached (a map of it is; see `MapFunction.of`).
        attention: attention probabilities [B, heads, N, N], queries by keys, of up to four blocks at equal depths of a
            transformer, differentiable on the student's side; prefix tokens first, then the patches row by row. They
            are too large to cache: the teacher runs on every batch.
        labels: the hard labels [B].
        epoch: the epoch, from 0, plus the fraction of it that is done.
    """

    maps: tuple[MapFunction, ...] = ()
    logits: bool = False
    features: bool = False
    input_gradient: bool = False
    attention: bool = False
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
            attention=any(each.attention for each in every),
            labels=any(each.labels for each in every),
            epoch=any(each.epoch for each in every),
        )

    def maps_of(self, source: str) -> tuple[MapFunction, ...]:
        """The map functions of features, of the input's gradient, or of attention; see `MapFunction.of`."""
        return tuple(function for function in self.maps if function.of == source)

    @property
    def stages(self) -> bool:
        """Whether stages are tapped at all."""
        return self.features or bool(self.maps_of(FEATURES))

    @property
    def blocks(self) -> bool:
        """Whether the attention of a transformer's blocks is read."""
        return self.attention or bool(self.maps_of(ATTENTION))

    @property
    def probed(self) -> bool:
        """Whether anything is read while the network runs: its stages, or the attention of its blocks."""
        return self.stages or self.blocks

    @property
    def gradient(self) -> bool:
        """Whether the gradient by the input is computed, itself or for a map."""
        return self.input_gradient or bool(self.maps_of(INPUT_GRADIENT))

    @property
    def uncacheable(self) -> tuple[str, ...]:
        """The needed signals that cannot be cached."""
        return tuple(name for name, is_needed in self._large().items() if is_needed)

    @property
    def of_the_teacher(self) -> tuple[str, ...]:
        """The names of the signals that are needed of a teacher."""
        names = {LOGITS: self.logits, **self._large()}
        return (*(function.signal for function in self.maps), *(name for name, is_needed in names.items() if is_needed))

    def map_signals(self, source: str, values: Sequence[Any]) -> dict[str, Signal]:
        """The maps [B, H, W] by every map function of this source, by the name of the signal.

        Args:
            source: of the map functions.
            values: what they are given, one a stage.
        """
        return {f.signal: map_signal(f, [f(value) for value in values]) for f in self.maps_of(source)}

    def _large(self) -> dict[str, bool]:
        return {FEATURES: self.features, INPUT_GRADIENT: self.input_gradient, ATTENTION: self.attention}


def map_signal(function: MapFunction, maps: Sequence[Tensor], coverage: Sequence[Tensor] | None = None) -> Signal:
    """Maps by a function as a signal.

    Args:
        function: the kind of map.
        maps: [B, H, W] of each stage. An all-zero map of the input's gradient is of an image that has none: it is not
            covered.
        coverage: [B, H, W] of each stage; None: known everywhere.
    """
    depends_on_label = function.of == INPUT_GRADIENT
    if depends_on_label:
        coverage = [known_images(stage) for stage in maps]
    return Signal(tuple(maps), None if coverage is None else tuple(coverage), depends_on_label=depends_on_label)


def known_images(maps: Tensor) -> Tensor:
    """[B, H, W]: 1 throughout a map that has a cell above 0, and 0 throughout any other."""
    known = maps.detach().flatten(1).any(dim=1).to(maps.dtype)
    return known[:, None, None].expand_as(maps)


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
