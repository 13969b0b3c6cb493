"""Probe: every signal that a forward pass of a network shows, read by hooks while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from torch import Tensor, nn

from attention_transfer.features.attention_probabilities import AttentionLayout, AttentionTaps
from attention_transfer.features.maps import at_least_float32
from attention_transfer.features.signals import ATTENTION, FEATURES, Needs, Signal
from attention_transfer.features.stages.stage import Stage
from attention_transfer.features.taps import Taps


class Probe:
    """Hooks on a network's stages and attention modules while its context is open, and the signals they show.

    Args:
        model: any network, also inside wrappers.
        needs: the signals to read.
        stages: its stages; see `Taps`.
        layout: of its attention modules; None where attention is not needed.
        stop: `run` may end the forward pass after the last stage; see `Taps`.
        stay: the hooks stay registered until `close`, for a compiled network.
    """

    def __init__(
        self,
        model: nn.Module,
        needs: Needs,
        stages: Sequence[Stage | str] = (),
        layout: AttentionLayout | None = None,
        *,
        stop: bool = False,
        stay: bool = False,
    ) -> None:
        self.needs = needs
        self._taps = Taps(model, stages, stop=stop and layout is None, stay=stay)
        self._attention = None if layout is None else AttentionTaps(model, layout, stay=stay)
        self._opened = ExitStack()

    def __enter__(self) -> Probe:
        with ExitStack() as opened:
            opened.enter_context(self._taps)
            if self._attention is not None:
                opened.enter_context(self._attention)
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def run(self, images: Tensor) -> Tensor | None:
        """One forward pass on images [B, 3, H, W]: logits [B, K], or None if it ended early; see `Taps.run`."""
        return self._taps.run(images)

    def signals(self) -> dict[str, Signal]:
        """Maps [B, H, W], features [B, C, H, W] and attention probabilities [B, heads, N, N] of the last forward pass.

        Raises:
            ConfigError: a module did not run.
        """
        signals: dict[str, Signal] = {}
        if self._taps.names:
            features = self._taps.take()
            signals |= self.needs.map_signals(FEATURES, features)
            if self.needs.features:
                # a term's own layers are float32 whatever the network runs in
                signals[FEATURES] = Signal(tuple(map(at_least_float32, features)))
        if self._attention is not None:
            blocks = self._attention.take()
            signals |= self.needs.map_signals(ATTENTION, blocks)
            if self.needs.attention:
                signals[ATTENTION] = Signal(tuple(block.probabilities() for block in blocks))
        return signals

    def close(self) -> None:
        """Remove the hooks; a second call does nothing."""
        self._taps.close()
        if self._attention is not None:
            self._attention.close()
