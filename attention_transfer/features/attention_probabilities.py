"""Attention probabilities of a transformer's blocks while it runs, and the map of its class token's."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.attention_modules import QueriesAndKeys, reader_of
from attention_transfer.features.hooks import Hooked
from attention_transfer.features.maps import ATTENTION, MapFunction, at_least_float32
from attention_transfer.modules import unwrapped
from attention_transfer.networks.architecture import Size


@dataclass(frozen=True)
class AttentionLayout:
    """Which blocks of a transformer are read, and what its tokens are.

    Attributes:
        names: of the attention modules, shallow to deep.
        depths: of these blocks, in (0, 1]: block i of n has the depth (i + 1) / n.
        prefix: class, distillation and register tokens before the patches.
        has_class_token: whether the first token is a class token.
        grid: (H, W) of the patches, which follow row by row.
    """

    names: tuple[str, ...]
    depths: tuple[float, ...]
    prefix: int
    has_class_token: bool
    grid: Size

    @property
    def tokens(self) -> int:
        """N, the number of tokens."""
        return self.prefix + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class BlockAttention:
    """What one block has attended by, and the layout of its tokens.

    Attributes:
        parts: queries and keys of its heads.
        layout: of the network.
    """

    parts: QueriesAndKeys
    layout: AttentionLayout

    def probabilities(self, tokens: slice = slice(None)) -> Tensor:
        """softmax(scale q k^T) over all keys, float32 or wider.

        Args:
            tokens: whose queries, n of N.

        Returns:
            [B, heads, n, N], in [0, 1]; each row adds up to 1.
        """
        queries, keys, scale = self.parts
        q, k = at_least_float32(queries(tokens)), at_least_float32(keys)
        with torch.autocast(k.device.type, enabled=False):
            return torch.softmax((q * scale) @ k.transpose(2, 3), dim=3)


def class_token_map(attention: BlockAttention) -> Tensor:
    """Where a block's class token looks: the mean over heads of its attention probabilities to the patches.

    Without a class token: the mean over the patches' queries as well. Class, distillation and register tokens are
    left out of what is looked at, after the softmax.

    Args:
        attention: of one block, on a grid of H x W patches.

    Returns:
        [B, H, W], in [0, 1], float32 or wider.
    """
    layout = attention.layout
    probabilities = attention.probabilities(slice(0, 1) if layout.has_class_token else slice(layout.prefix, None))
    return probabilities.mean(dim=(1, 2))[:, layout.prefix :].reshape(-1, *layout.grid)


CLASS_TOKEN = MapFunction("attention probabilities of the class token", class_token_map, ATTENTION)
"""softmax(q k^T / sqrt d) from the class token to the patches, mean over heads."""


class AttentionTaps(Hooked):
    """Reads the attention of a transformer's blocks while it runs; its outputs do not change.

    Args:
        model: the network, also inside wrappers.
        layout: of its blocks and tokens, as from `find_attention`.
        stay: the hooks stay registered from the first context to `close`, as a compiled network is compiled with them.
    """

    def __init__(self, model: nn.Module, layout: AttentionLayout, *, stay: bool = False) -> None:
        modules = dict(unwrapped(model).named_modules())
        super().__init__(stay=stay)
        self.layout = layout
        self._readers = {name: reader_of(modules[name]) for name in layout.names}

    def _attach(self, hooks: ExitStack) -> None:
        for reader in self._readers.values():
            for handle in reader.attach() if reader is not None else ():
                hooks.callback(handle.remove)

    def take(self) -> tuple[BlockAttention, ...]:
        """The attention of each block in the last forward pass, which is no longer held here afterwards.

        Raises:
            ConfigError: a module did not run, or with another number of tokens than the layout has.
        """
        return tuple(BlockAttention(self._of(name), self.layout) for name in self.layout.names)

    def parts(self, name: str) -> QueriesAndKeys | None:
        """What one module has attended by in the last forward pass; None if it did not show it."""
        reader = self._readers[name]
        return None if reader is None else reader.take()

    def _of(self, name: str) -> QueriesAndKeys:
        parts = self.parts(name)
        if parts is None:
            raise ConfigError(f"the attention module {name!r} took no part in the forward pass.")
        if parts.keys.shape[2] != self.layout.tokens:
            raise ConfigError(
                f"the attention module {name!r} ran on {parts.keys.shape[2]} tokens instead of {self.layout.tokens}; "
                "tokens must not be dropped or merged (set patch_drop_rate to 0), and all images must have one size."
            )
        return parts
