"""The stages of timm's networks: its documentation proposes, and one pass decides.

`forward_intermediates` is timm's own definition of the intermediate features. Attributes cannot be trusted for the rest
(names that do not exist, prefix tokens that the blocks do not have, layouts that are not told): a stage is a module
whose output in an ordinary pass, read in some layout, equals the documented features to the bit.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.stages.stage import Choice, Stage, deepest_of_each_size
from attention_transfer.modules import undisturbed
from attention_transfer.networks.readout import NCHW, NHWC, Readout, tokens

_SHOWN = 6
_PERTURBED = 0.1
"""Relative change of the weights that tells modules apart whose outputs are equal by initialisation."""


def documents_stages(network: nn.Module) -> bool:
    """Whether it is a network of timm that documents its intermediate features."""
    is_timm = any(base.__module__.startswith("timm.") for base in type(network).__mro__)
    return is_timm and hasattr(network, "forward_intermediates") and hasattr(network, "feature_info")


def timm_stages(network: nn.Module, image: Tensor) -> Choice:
    """The stages of a network of timm, shallow to deep.

    Args:
        network: of timm, not wrapped; left unchanged.
        image: [1, C, H, W], its input.

    Raises:
        ConfigError: no module's output equals a documented stage in any layout; the message names the stages that can
            be named in the setting layers.
    """
    features = documented_features(network, image)
    matches = _matches(network, image, features)
    wanted = deepest_of_each_size([Stage(str(i), NCHW, _size(x)) for i, x in enumerate(features)])
    proposals = _proposed_names(network)
    if any(_is_ambiguous(matches[int(stage.name)], proposals, int(stage.name)) for stage in wanted):
        matches = _matches_of_perturbed(network, image, matches)
    read = {
        index: Stage(name, candidates[name], _size(features[index]))
        for index, candidates in enumerate(matches)
        if candidates and (name := _preferred(candidates, proposals, index))
    }
    for stage in wanted:
        if int(stage.name) not in read:
            raise ConfigError(_no_module(network, int(stage.name), proposals, stage, matches))
    return Choice(tuple(read[int(stage.name)] for stage in wanted), tuple(read.values()))


def documented_features(network: nn.Module, image: Tensor) -> list[Tensor]:
    """The features [1, C, H, W] of every stage that timm documents for a network.

    Args:
        network: of timm.
        image: [1, C, H, W].
    """
    method: Any = network.forward_intermediates
    known = inspect.signature(method).parameters
    wanted = {"intermediates_only": True, "norm": False, "output_fmt": "NCHW"}
    with undisturbed(network):
        features = method(image, **{key: value for key, value in wanted.items() if key in known})
    if isinstance(features, dict):
        features = features["image_intermediates"]
    return [x for x in features if isinstance(x, Tensor) and x.dim() == 4]


Candidates = dict[str, Readout]
"""The readout by which each module's output equals a documented stage, in the order in which the modules end."""


def _matches(network: nn.Module, image: Tensor, features: Sequence[Tensor]) -> list[Candidates]:
    """For each documented stage the modules that put it out, in one ordinary pass."""
    found: list[Candidates] = [{} for _ in features]

    def listener(name: str) -> Any:
        def listen(module: nn.Module, args: Any, output: Any) -> None:
            for candidates, expected in zip(found, features, strict=True):
                readout = readout_that_gives(expected, output)
                # of a module that runs again the last output counts, as in the taps
                candidates.pop(name, None)
                if readout is not None:
                    candidates[name] = readout

        return listen

    with ExitStack() as hooks, undisturbed(network):
        for name, module in network.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(listener(name)).remove)
        network(image)
    return found


def readout_that_gives(expected: Tensor, output: Any) -> Readout | None:
    """The readout by which a module's output equals the features [1, C, H, W] to the bit; None if there is none."""
    if isinstance(output, tuple | list):
        found = ((i, readout_that_gives(expected, each)) for i, each in enumerate(output) if isinstance(each, Tensor))
        return next((readout.of_element(i) for i, readout in found if readout is not None), None)
    if not isinstance(output, Tensor) or output.numel() < expected.numel():
        return None
    return next((readout for readout in _layouts(expected, output) if _reads(readout, output, expected)), None)


def _layouts(expected: Tensor, output: Tensor) -> Iterator[Readout]:
    if output.dim() == 4:
        yield from (NCHW, NHWC)
    height, width = _size(expected)
    if output.dim() == 3 and output.shape[1] >= height * width:
        yield tokens(height, width, output.shape[1] - height * width)


def _reads(readout: Readout, output: Tensor, expected: Tensor) -> bool:
    features = readout("", output)
    return features.shape == expected.shape and torch.equal(features, expected)


def _proposed_names(network: nn.Module) -> list[str]:
    info: Any = network.feature_info
    entries = info.info if hasattr(info, "info") else info
    return [str(entry.get("module", "")) for entry in entries]


def _outermost(candidates: Candidates) -> list[str]:
    return [name for name in candidates if not any(name.startswith(f"{other}.") for other in candidates)]


def _is_ambiguous(candidates: Candidates, proposals: Sequence[str], index: int) -> bool:
    is_proposed = index < len(proposals) and proposals[index] in candidates
    return not is_proposed and len(_outermost(candidates)) > 1


def _preferred(candidates: Candidates, proposals: Sequence[str], index: int) -> str:
    """timm's own name for the stage if that module puts it out; else the outermost, and of several the first to end.

    Those after the first pass its output on unchanged, in eval mode and with whatever weights.
    """
    if index < len(proposals) and proposals[index] in candidates:
        return proposals[index]
    return _outermost(candidates)[0]


def _matches_of_perturbed(network: nn.Module, image: Tensor, before: Sequence[Candidates]) -> list[Candidates]:
    """The matches that hold for other weights, too: a residual branch that begins at zero passes its input on."""
    other = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(_PERTURBED * noise * (parameter.std(correction=0) + _PERTURBED))
    again = _matches(other, image, documented_features(other, image))
    return [{name: x for name, x in old.items() if name in new} for old, new in zip(before, again, strict=True)]


def _no_module(
    network: nn.Module, index: int, proposals: Sequence[str], stage: Stage, matches: Sequence[Candidates]
) -> str:
    assert stage.size is not None
    proposed = f" (timm calls it {proposals[index]!r})" if index < len(proposals) and proposals[index] else ""
    others = [name for candidates in matches for name in _outermost(candidates)]
    can = f" The modules that do put out a documented stage are {', '.join(others[:_SHOWN])}." if others else ""
    return (
        f"{type(network).__name__}: no module puts out stage {index + 1} of {len(matches)}{proposed}, of "
        f"{stage.size[0]}x{stage.size[1]}, in a layout that can be read: its attention cannot be tapped. Name other "
        f"modules with the key 'layers'.{can}"
    )


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
