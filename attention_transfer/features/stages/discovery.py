"""Stages of an unknown network: module boundaries before the resolution falls, found by running it once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.stages.layouts import are_tokens, find_layout
from attention_transfer.features.stages.stage import MOST_STAGES, Choice, Stage
from attention_transfer.modules import undisturbed
from attention_transfer.networks.architecture import Size
from attention_transfer.networks.readout import Readout

_MANY_FALLS = 2
"""A module inside which the resolution falls this often holds several stages."""
_MOST_PREFIX = 16
"""Class, distillation and register tokens that a transformer may have beside those of its patches."""


@dataclass
class _Run:
    """A module that ran in the pass.

    Attributes:
        name: of the module; empty for the network.
        size: (H, W) of its output; None if that is no map of the image.
        readout: of its output.
        gets_tokens: whether its input is [B, N, C] or [N, B, C]; what is inside is of heads then, and no map.
        tokens: N, where its output is of the same shape.
        inside: the modules that ran directly in it, in the order in which they ended.
    """

    name: str
    size: Size | None = None
    readout: Readout | None = None
    gets_tokens: bool = False
    tokens: int | None = None
    inside: list[_Run] = field(default_factory=list)


def boundaries(network: nn.Module, image: Tensor) -> Choice:
    """The stages of an unknown network: the last module to put out each resolution, at most the deepest four.

    Only modules of the outermost chain count: a module is looked into where it puts out no map, or where the resolution
    falls inside it twice or more, as in a backbone. So a stage ends at the end of a block, and never inside the block
    that follows, where the first layers still have the resolution of the block before. Nor is a module looked into that
    gets tokens: its heads' queries [B, heads, N, d] and probabilities [B, heads, N, N] would look like maps.

    Args:
        network: any network that puts out maps; it is run in eval mode, and left unchanged.
        image: [1, C, H, W] on the network's device.

    Returns:
        the stages, and the ends of all modules of the chain; maps of 1x1 carry no signal and are left out.

    Raises:
        ConfigError: no module puts out a map with a resolution below the image's; or blocks follow whose outputs are
            tokens, as in a transformer that is of no library.
    """
    whole = image.shape[-2] * image.shape[-1]
    candidates: dict[str, Stage] = {}
    last: dict[Size, Stage] = {}
    for run in _chain(_watch(network, image)):
        _refuse_tokens(network, run, last)
        if run.size is not None and run.readout is not None and 1 < run.size[0] * run.size[1] < whole:
            last.pop(run.size, None)
            last[run.size] = candidates[run.name] = Stage(run.name, run.readout, run.size)
    stages = list(last.values())
    if not stages:
        raise ConfigError(
            f"{type(network).__name__} has no module whose output is a map smaller than the image; "
            "name the modules to compare with the key 'layers'."
        )
    return Choice(tuple(stages[-MOST_STAGES:]), tuple(candidates.values()))


def _chain(run: _Run) -> Iterator[_Run]:
    """The modules that run one after another at the outermost level, with those inside a module of several stages."""
    for each in run.inside:
        if not each.gets_tokens and (each.size is None or _falls_inside(each) >= _MANY_FALLS):
            yield from _chain(each)
        yield each


def _refuse_tokens(network: nn.Module, run: _Run, before: dict[Size, Stage]) -> None:
    """Refuse a module that works on the tokens of an earlier map, which would be the stage in their place."""
    if run.tokens is None:
        return
    grids = [stage for (h, w), stage in before.items() if 0 <= run.tokens - h * w <= _MOST_PREFIX]
    if not grids:
        return
    raise ConfigError(
        f"{type(network).__name__}: {run.name!r} puts out {run.tokens} tokens of {grids[-1].name!r}, and which of "
        "them is at which place is unknown: its stages cannot be found; take the network of timm or torchvision, or "
        "name modules that put out maps with the key 'layers'."
    )


def _falls_inside(run: _Run) -> int:
    sizes = {each.size for each in run.inside if each.size is not None and each.size != (1, 1)}
    deeper = max((_falls_inside(each) for each in run.inside), default=0)
    return max(len(sizes) - 1, deeper)


def _watch(network: nn.Module, image: Tensor) -> _Run:
    """One pass: what ran inside what, and the sizes of the maps that it put out."""
    outermost = _Run("")
    open_runs = [outermost]
    outputs: dict[str, Any] = {}

    def began(name: str) -> Any:
        def listen(module: nn.Module, args: Any) -> None:
            open_runs.append(_Run(name, gets_tokens=bool(args) and are_tokens(args[0])))

        return listen

    def ended(name: str) -> Any:
        def listen(module: nn.Module, args: Any, output: Any) -> None:
            run = open_runs.pop()
            if run.gets_tokens and are_tokens(output) and output.shape == args[0].shape:
                run.tokens = max(output.shape[:2])
            outputs[name] = output.detach() if isinstance(output, Tensor) and output.dim() == 4 else None
            open_runs[-1].inside.append(run)

        return listen

    with ExitStack() as hooks, undisturbed(network):
        for name, module in network.named_modules():
            if name:
                hooks.callback(module.register_forward_pre_hook(began(name)).remove)
                hooks.callback(module.register_forward_hook(ended(name)).remove)
        network(image)
    _measure(outermost, network, image, outputs)
    return outermost


def _measure(run: _Run, network: nn.Module, image: Tensor, outputs: dict[str, Any]) -> None:
    """Fill in size and readout of everything that ran; a module that ran twice counts with its last output."""
    for each in run.inside:
        _measure(each, network, image, outputs)
        output = outputs[each.name]
        each.readout = None if output is None else find_layout(network, image, each.name, output)
        if each.readout is not None:
            features = each.readout(each.name, output)
            each.size = features.shape[-2], features.shape[-1]
