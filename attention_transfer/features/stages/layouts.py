"""The layout of a module's output, where only the output tells: its sides must be in proportion to the image's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.stages.stage import Stage
from attention_transfer.modules import check_modules, undisturbed
from attention_transfer.networks.architecture import Size
from attention_transfer.networks.readout import NCHW, NHWC, Readout, described

_REMEDY = "name another module with the key 'layers'"
_SPATIAL = (
    nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d, nn.MaxPool2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.PixelShuffle,
)  # fmt: skip
_ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Identity, nn.Dropout)
_ROUNDING = 2
"""Cells by which valid convolutions and rounded strides may shorten a side more than the other."""


def read_layouts(
    network: nn.Module, image: Tensor, names: Sequence[str], known: Sequence[Stage] = ()
) -> tuple[Stage, ...]:
    """The stages that the user names, with the layout in which each module puts out its features.

    Args:
        network: not wrapped; run once, and left unchanged.
        image: [1, C, H, W] on the network's device.
        names: of the modules.
        known: stages of the network whose readouts are known; tried first.

    Raises:
        ConfigError: there is no such module, it does not run, or its output can be read in no layout or in two.
    """
    check_modules(network, names)
    outputs = outputs_of(network, image, names)
    if silent := [name for name in names if name not in outputs]:
        raise ConfigError(f"module {silent[0]!r} took no part in the forward pass; choose other layers.")
    heads = _inside_tokens(network, image, names)
    return tuple(_stage(network, image, name, outputs[name], known, is_of_heads=name in heads) for name in names)


def _stage(
    network: nn.Module, image: Tensor, name: str, output: Any, known: Sequence[Stage], *, is_of_heads: bool
) -> Stage:
    readouts = {stage.readout.name: stage.readout for stage in known}
    whole = image.shape[-2], image.shape[-1]
    fitting = [readout for readout in readouts.values() if _fits(readout, output, image)]
    readout = fitting[0] if len(fitting) == 1 else find_layout(network, image, name, output)
    # inside a block of a transformer [B, heads, N, N] and [B, heads, N, d] look like maps
    if readout is not None and _is_among_tokens(name, known) and _size(readout(name, output)) not in _sizes(known):
        readout = None
    if readout in (NCHW, NHWC) and is_of_heads and not _is_spatial(network.get_submodule(name)):
        readout = None
    if readout is None:
        raise ConfigError(
            f"module {name!r} puts out {described(output)}; attention needs [B, C, H, W], [B, H, W, C], or tokens on a "
            f"known grid, with H and W in proportion to the image's {whole[0]}x{whole[1]}: {_REMEDY}."
        )
    return Stage(name, readout, _size(readout(name, output)))


def _inside_tokens(network: nn.Module, image: Tensor, names: Sequence[str]) -> set[str]:
    """The modules of these names that lie in a module whose input is tokens [B, N, C]."""
    given: set[str] = set()

    def listener(name: str) -> Any:
        def listen(module: nn.Module, args: Any) -> None:
            if args and are_tokens(args[0]):
                given.add(name)

        return listen

    around = {name: [name[:i] for i, letter in enumerate(name) if letter == "."] for name in names}
    modules = dict(network.named_modules())
    with ExitStack() as hooks, undisturbed(network):
        for name in {outer for each in around.values() for outer in each}:
            hooks.callback(modules[name].register_forward_pre_hook(listener(name)).remove)
        network(image)
    return {name for name, outers in around.items() if given.intersection(outers)}


def are_tokens(value: Any) -> bool:
    """Whether a value has the shape of tokens, [B, N, C] or [N, B, C]."""
    return isinstance(value, Tensor) and value.dim() == 3


def _is_among_tokens(name: str, known: Sequence[Stage]) -> bool:
    """Whether a module lies beside or inside the blocks of which some are known to put out tokens."""
    chains = {stage.name.rpartition(".")[0] for stage in known if stage.readout.function not in (None, NHWC.function)}
    return any(name.startswith(f"{chain}.") for chain in chains)


def _sizes(stages: Sequence[Stage]) -> set[Size | None]:
    return {stage.size for stage in stages}


def _size(features: Tensor) -> Size:
    return features.shape[-2], features.shape[-1]


def find_layout(network: nn.Module, image: Tensor, name: str, output: Any) -> Readout | None:
    """NCHW or NHWC, whichever has sides in proportion to the image's; None if neither has, or not one map an image.

    Where both have, convolutions, pools and batch norms are NCHW by definition, and so is a module that ends with one;
    for any other a second pass on an image twice as wide shows which side is the width.

    Args:
        network: not wrapped; left unchanged.
        image: [1, C, H, W] on the network's device.
        name: of a module.
        output: of that module for the image.

    Raises:
        ConfigError: both layouts are possible, and the network takes no wider images.
    """
    fitting = [readout for readout in (NCHW, NHWC) if _fits(readout, output, image)]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    if _is_spatial(network.get_submodule(name)):
        return NCHW
    try:
        [wider] = outputs_of(network, torch.cat([image, image], dim=3), [name]).values()
    except Exception as error:
        raise ConfigError(
            f"module {name!r} puts out {described(output)}, which may be {NCHW.shape} or {NHWC.shape}; {_REMEDY}."
        ) from error
    return NCHW if wider.shape[3] > output.shape[3] else NHWC


def _is_spatial(module: nn.Module) -> bool:
    """Whether a module is, or ends with, a layer for [B, C, H, W]; activations and dropout do not count."""
    layers = [each for each in module.modules() if not list(each.children())]
    shaping = [each for each in layers if not isinstance(each, _ELEMENTWISE)]
    return bool(shaping) and isinstance(shaping[-1], _SPATIAL)


def outputs_of(network: nn.Module, image: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """The last output of each of these modules in a pass on an image [1, C, H, W]; those that do not run are absent.

    Args:
        network: not wrapped; left unchanged.
        image: on its device.
        names: of modules that it has.
    """
    outputs: dict[str, Any] = {}

    def listener(name: str) -> Any:
        def listen(module: nn.Module, args: Any, output: Any) -> None:
            outputs[name] = output

        return listen

    modules = dict(network.named_modules())
    with ExitStack() as hooks, undisturbed(network):
        for name in dict.fromkeys(names):
            hooks.callback(modules[name].register_forward_hook(listener(name)).remove)
        network(image)
    return outputs


def _fits(readout: Readout, output: Any, image: Tensor) -> bool:
    try:
        count, _, height, width = readout("", output).shape
    except ConfigError:
        return False
    if count != len(image):  # windows of an image, each as an image of its own
        return False
    whole = image.shape[-2], image.shape[-1]
    stride = max(whole[0] / max(height, 1), whole[1] / max(width, 1))
    return stride >= 1 and all(
        abs(n * stride - side) <= _ROUNDING * stride for n, side in zip((height, width), whole, strict=True)
    )
