"""The stages of a network, on whose outputs attention is compared: which modules, and how their outputs are read.

Asked in this order: the modules that the user names; the registry of our own networks; the stages that timm documents
for its networks, and our table for torchvision's; and only then module boundaries found by running the network once.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.stages.discovery import boundaries
from attention_transfer.features.stages.layouts import read_layouts
from attention_transfer.features.stages.libraries import library_stages
from attention_transfer.features.stages.stage import Stage, in_words
from attention_transfer.modules import check_modules, unwrapped
from attention_transfer.networks.registry import network_name, readout_of, taps_of

logger = logging.getLogger(__name__)

LAYERS, REGISTRY, FOUND = "the setting layers", "the registry", "running it once"


@dataclass(frozen=True)
class Stages:
    """The stages of a network, shallow to deep.

    Attributes:
        stages: module and readout of each.
        source: who named them, in words.
        candidates: all that could be compared, where a pass over the network has shown them.
    """

    stages: tuple[Stage, ...]
    source: str
    candidates: tuple[Stage, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the modules."""
        return tuple(stage.name for stage in self.stages)


_chosen: weakref.WeakKeyDictionary[nn.Module, dict[object, Stages]] = weakref.WeakKeyDictionary()


def choose_stages(model: nn.Module, images: Tensor, layers: Sequence[str] | None = None) -> Stages:
    """The stages of a network, decided once for each shape of images, and logged.

    Args:
        model: any network, also inside wrappers; unless it is of our registry it is run a few times on one image, and
            left unchanged.
        images: [B, C, H, W] on the network's device.
        layers: module names to use instead.

    Raises:
        ConfigError: no module's output can be read as the features [B, C, H, W] of a stage; or several can, and they
            differ. The message names the candidates.
    """
    network = unwrapped(model)
    if layers is None and (names := taps_of(network)):
        return Stages(tuple(Stage(name, readout_of(network)) for name in names), REGISTRY)
    if layers is not None and taps_of(network):
        check_modules(network, layers)
        return Stages(tuple(Stage(name, readout_of(network)) for name in layers), LAYERS)
    key = tuple(images.shape[1:]), None if layers is None else tuple(layers)
    decided = _chosen.setdefault(network, {})
    if key not in decided:
        decided[key] = _decide(network, images[:1], layers)
        logger.info(
            "stages of %s, from %s: %s", network_name(network), decided[key].source, in_words(decided[key].stages)
        )
    return decided[key]


def _decide(network: nn.Module, image: Tensor, layers: Sequence[str] | None) -> Stages:
    if layers is not None:
        return Stages(read_layouts(network, image, layers, _known(network, image)), LAYERS)
    documented = library_stages(network, image)
    if documented is not None:
        return Stages(documented.stages, documented.source, documented.candidates)
    found = boundaries(network, image)
    return Stages(found.stages, FOUND, found.candidates)


def _known(network: nn.Module, image: Tensor) -> tuple[Stage, ...]:
    """The documented stages, whose readouts named modules may share; none where they cannot be tapped."""
    try:
        documented = library_stages(network, image)
    except ConfigError:
        return ()
    return () if documented is None else documented.candidates


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
