"""The stages that a library documents for its networks: timm's, checked in a pass, and our table for torchvision's."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from attention_transfer.features.stages.stage import Stage
from attention_transfer.features.stages.timm import documents_stages, timm_stages
from attention_transfer.features.stages.torchvision import is_of_torchvision, torchvision_stages
from attention_transfer.modules import undisturbed

TIMM, TORCHVISION = "what timm documents", "our table for torchvision"


class Documented(NamedTuple):
    """The stages of a library's network, what they were chosen from, and where they are from."""

    stages: tuple[Stage, ...]
    candidates: tuple[Stage, ...]
    source: str


class _Part(NamedTuple):
    name: str
    network: nn.Module


def library_stages(network: nn.Module, image: Tensor) -> Documented | None:
    """The documented stages of a network of timm or torchvision; also of one inside a module of the user's.

    Args:
        network: not wrapped; left unchanged.
        image: [1, C, H, W] on the network's device.

    Returns:
        the stages, shallow to deep; None where the network holds no such network, or more than one.

    Raises:
        ConfigError: no module of the network puts out what its library documents.
    """
    parts = _library_parts(network)
    if len(parts) != 1:
        return None
    [part] = parts
    is_timm = documents_stages(part.network)
    image = _input_of(network, part, image)
    choice = timm_stages(part.network, image) if is_timm else torchvision_stages(part.network, image)
    stages, candidates = (tuple(_inside(part, stage) for stage in stages) for stages in choice)
    return Documented(stages, candidates, TIMM if is_timm else TORCHVISION)


def _inside(part: _Part, stage: Stage) -> Stage:
    return Stage(f"{part.name}.{stage.name}", stage.readout, stage.size) if part.name else stage


def _library_parts(network: nn.Module, name: str = "") -> list[_Part]:
    """The outermost modules that are networks of a library."""
    if documents_stages(network) or is_of_torchvision(network):
        return [_Part(name, network)]
    children = network.named_children()
    return [part for child, module in children for part in _library_parts(module, f"{name}.{child}".lstrip("."))]


def _input_of(network: nn.Module, part: _Part, image: Tensor) -> Tensor:
    """What a part of the network gets when the network gets the image."""
    if not part.name:
        return image
    got: list[Tensor] = []
    hook = part.network.register_forward_pre_hook(lambda module, args: got.append(args[0]))
    try:
        with undisturbed(network):
            network(image)
    finally:
        hook.remove()
    return got[0] if got else image
