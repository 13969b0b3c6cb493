"""Architecture: the registry's description of a family of networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from attention_transfer.networks.readout import NCHW, Readout

Size = tuple[int, int]
"""(H, W)."""

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every tensor of a state_dict, by its key."""


@dataclass(frozen=True)
class Architecture:
    """A family of networks that can be built by name.

    Attributes:
        name_pattern: regular expression of the whole name, as in `config.NETWORKS`; its groups are numbers.
        build: called as `build(*numbers, num_classes=...)` with the numbers in the name. It raises
            ConfigError for numbers that the family does not have.
        taps: names of the modules whose outputs are the stages, shallow to deep.
        head: name of the final `nn.Linear`.
        candidates: names in this family that a state_dict of these shapes might belong to. It may guess,
            since each guess is verified; a family of one name can return it always.
        pretrained: the published state_dict of a weights name, or None if the family has none.
        readout: how the outputs of the stages are read as features [B, C, H, W].
        pretrained_names: the names that `pretrained` knows.
        spellings: for each other way in which public code names the parameters of this family: a function from such
            a key to ours. Only the names may differ; the network must compute the same.

    Example:
        >>> def tiny(num_classes: int) -> nn.Module:
        ...     pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        ...     return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), pool, nn.Linear(8, num_classes))
        >>> family = Architecture("Tiny", tiny, taps=("1",), head="3", candidates=lambda shapes: ["Tiny"])
    """

    name_pattern: str
    build: Callable[..., nn.Module]
    taps: tuple[str, ...]
    head: str
    candidates: Callable[[Shapes], list[str]]
    pretrained: Callable[[str], dict[str, Tensor]] | None = None
    pretrained_names: tuple[str, ...] = ()
    spellings: tuple[Callable[[str], str], ...] = ()
    readout: Readout = NCHW
