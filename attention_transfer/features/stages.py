"""The stages of a network, on whose outputs attention is compared."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.discovery import discover_stages
from attention_transfer.networks.registry import taps_of


def stage_names(model: nn.Module, images: Tensor, layers: Sequence[str] | None = None) -> tuple[str, ...]:
    """The modules whose outputs are the stages of `model`, shallow to deep.

    Args:
        model: a network of this library, whose stages are known, or any other, whose stages are found by
            running it once on an image.
        images: [B, 3, H, W] on the network's device; used for an unknown network only.
        layers: module names to use instead.
    """
    if layers is not None:
        return tuple(layers)
    return taps_of(model) or discover_stages(model, images)


def split_layers(layers: Sequence[str] | None) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """The student's and the teacher's module names from the setting `layers`; None and None where it is None.

    Example:
        >>> split_layers(["layer3", "stage4:layer4"])
        (('layer3', 'stage4'), ('layer3', 'layer4'))

    Raises:
        ConfigError: an entry is empty or has more than one colon.
    """
    if layers is None:
        return None, None
    if not layers:
        raise ConfigError("layers is empty; name at least one module, or leave it out for all stages.")
    pairs = [entry.split(":") for entry in layers]
    for entry, names in zip(layers, pairs, strict=True):
        if len(names) > 2 or not all(names):
            raise ConfigError(f"layers has {entry!r}; write 'module' or 'student.module:teacher.module'.")
    return tuple(names[0] for names in pairs), tuple(names[-1] for names in pairs)
