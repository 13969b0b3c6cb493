"""The attention modules of an unknown transformer, found by running it, and proved by comparing probabilities."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.attention_modules import attends_otherwise, is_readable, reason_against
from attention_transfer.features.attention_probabilities import AttentionLayout, AttentionTaps, BlockAttention
from attention_transfer.modules import like_weights, undisturbed, unwrapped
from attention_transfer.networks.architecture import Size

logger = logging.getLogger(__name__)

MOST_BLOCKS = 4
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
REGISTERS = ("reg_token", "register_tokens", "registers", "storage_tokens")
TOLERANCE = 1e-4
"""Greatest difference between the module's own probabilities and those computed here, in float32."""
TOLERANCE_OF_HALF = 1e-2

_found: weakref.WeakKeyDictionary[nn.Module, dict[Size, AttentionLayout]] = weakref.WeakKeyDictionary()


def find_attention(model: nn.Module, images: Tensor) -> AttentionLayout:
    """The attention modules of a transformer: four at equal depths, and the layout of its tokens.

    It is run a few times on one image, in eval mode, and left as it was. The grid of patches is that of the last
    convolution before the first attention module; which token belongs to which patch, and which is the class token, is
    found by changing the patch, or the parameter. The probabilities computed by `BlockAttention` are compared with the
    module's own.

    Args:
        model: a transformer that attends to all tokens in all blocks: ViT, DeiT, DINOv2, DINOv3, EVA.
        images: [B, 3, H, W] on the network's device, of the size of those to come.

    Raises:
        ConfigError: it is no such transformer; the message names module and reason.
    """
    network, size = unwrapped(model), (images.shape[2], images.shape[3])
    found = _found.setdefault(network, {})
    if size not in found:
        found[size] = _find(network, like_weights(images[:1], network))
        logger.info("attention of %s: %s", type(network).__name__, _in_words(found[size]))
    return found[size]


def equal_depths(count: int, most: int = MOST_BLOCKS) -> tuple[int, ...]:
    """Which of a network's blocks are compared: `most` at equal depths, the last among them; all of fewer.

    Example:
        >>> equal_depths(12), equal_depths(6), equal_depths(3)
        ((2, 5, 8, 11), (0, 2, 3, 5), (0, 1, 2))
    """
    most = min(count, most)
    return tuple((i + 1) * count // most - 1 for i in range(most))


def _find(network: nn.Module, image: Tensor) -> AttentionLayout:
    name = type(network).__name__
    run = _run(network, image)
    if run.refused:
        module = network.get_submodule(run.refused[0])
        raise ConfigError(
            f"attention='class_token' cannot be read from {name}: its module {run.refused[0]!r} is a "
            f"{type(module).__name__}, and {reason_against(module)}; choose another kind of attention."
        )
    if not run.inputs:
        raise ConfigError(
            f"attention='class_token' needs transformers on both sides, but {name} has no attention modules (of a kind "
            "that can be read); choose another kind of attention, or another network."
        )
    shapes = {module: tuple(x.shape) for module, x in run.inputs.items()}
    first = next(iter(shapes))
    odd = next((module for module, shape in shapes.items() if shape[:2] != shapes[first][:2]), first)
    if odd != first or shapes[first][0] != len(image) or len(shapes[first]) != 3:
        raise ConfigError(
            f"attention='class_token' cannot be read from {name}: {odd!r} ran on {shapes[odd]}, not on all tokens of "
            "each image [B, N, C] as every block must; it attends inside windows, or at several resolutions."
        )
    tokens = shapes[first][1]
    grid = _grid(name, run.convolutions, tokens)
    prefix = tokens - grid[0] * grid[1]
    has_class_token = _has_class_token(network, image, first, prefix)
    names, count = list(shapes), len(shapes)
    chosen = equal_depths(count)
    layout = AttentionLayout(
        tuple(names[i] for i in chosen), tuple((i + 1) / count for i in chosen), prefix, has_class_token, grid
    )
    _check_order(network, image, first, layout)
    _check_probabilities(network, image, layout)
    return layout


class _Run:
    """What a forward pass has shown.

    Attributes:
        inputs: the input [B, N, C] of each attention module, in the order in which they ran.
        refused: names of modules that attend in another way.
        convolutions: the sizes that convolutions have put out before the first attention module.
    """

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.refused: list[str] = []
        self.convolutions: list[Size] = []


def _run(network: nn.Module, images: Tensor, changed: dict[str, Tensor] | None = None) -> _Run:
    """One forward pass, with some parameters replaced by `changed`."""
    run = _Run()

    def attended(name: str) -> Any:
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
                x = x.transpose(0, 1)
            run.inputs.setdefault(name, x)

        return listen

    def refused(name: str) -> Any:
        return lambda module, args: run.refused.append(name)

    def convolved(module: nn.Module, args: Any, output: Any) -> None:
        if not run.inputs and isinstance(output, Tensor) and output.dim() == 4:
            run.convolutions.append((output.shape[2], output.shape[3]))

    with ExitStack() as hooks, undisturbed(network):
        for name, module in network.named_modules():
            if is_readable(module):
                hooks.callback(module.register_forward_pre_hook(attended(name), with_kwargs=True).remove)
            elif attends_otherwise(module):
                hooks.callback(module.register_forward_pre_hook(refused(name)).remove)
            elif isinstance(module, nn.Conv2d):
                hooks.callback(module.register_forward_hook(convolved).remove)
        if changed:
            torch.func.functional_call(network, changed, (images,))
        else:
            network(images)
    return run


def _grid(name: str, convolutions: Sequence[Size], tokens: int) -> Size:
    if not convolutions or convolutions[-1][0] * convolutions[-1][1] > tokens:
        raise ConfigError(
            f"attention='class_token' cannot be read from {name}: it has {tokens} tokens, and no convolution before "
            "them puts out a grid of patches."
        )
    return convolutions[-1]


def _has_class_token(network: nn.Module, image: Tensor, first: str, prefix: int) -> bool:
    """Whether the first token is a class token, as changing that parameter shows.

    Raises:
        ConfigError: a prefix token is of unknown kind, or the class token is not the first.
    """
    parameters = {name: value for name, value in network.named_parameters() if value is not None}
    named = [name for name in parameters if name.rpartition(".")[2] in CLASS_TOKENS]
    kinds = ", ".join(CLASS_TOKENS)
    if not prefix:
        return False
    if not named:
        if any(name.rpartition(".")[2] in REGISTERS for name in parameters):
            return False
        raise ConfigError(
            f"{type(network).__name__} has {prefix} tokens before its patches, and no parameter that is called "
            f"{kinds}: which of them is the class token is unknown; give the parameter one of these names."
        )
    before = _run(network, image).inputs[first]
    after = _run(network, image, {named[0]: parameters[named[0]] + 1}).inputs[first]
    changed = (after - before).abs().amax(dim=(0, 2)).nonzero().flatten().tolist()
    if changed != [0]:
        raise ConfigError(
            f"the class token {named[0]!r} of {type(network).__name__} is at {changed} among the tokens; it must be "
            "the first."
        )
    return True


def _check_order(network: nn.Module, image: Tensor, first: str, layout: AttentionLayout) -> None:
    """Check that patches follow row by row: a bright patch at the right edge, then at the lower edge.

    Raises:
        ConfigError: another token changes most.
    """
    (rows, columns), (height, width) = layout.grid, image.shape[2:]
    patch = max(1, height // rows), max(1, width // columns)
    images = image.repeat(3, 1, 1, 1)
    images[1, :, : patch[0], width - patch[1] :] += 3
    images[2, :, height - patch[0] :, : patch[1]] += 3
    tokens = _run(network, images).inputs[first]
    changed = (tokens[1:] - tokens[:1]).square().sum(dim=2)[:, layout.prefix :].argmax(dim=1).tolist()
    if changed != [columns - 1, (rows - 1) * columns]:
        raise ConfigError(
            f"the tokens of {type(network).__name__} are not its {rows} x {columns} patches row by row behind "
            f"{layout.prefix} others: a change of the corner patches changed patches {changed}."
        )


def _check_probabilities(network: nn.Module, image: Tensor, layout: AttentionLayout) -> None:
    """Check that the probabilities computed here are those that the modules compute.

    Raises:
        ConfigError: they are not, or the module does not show its own.
    """
    modules = dict(network.named_modules())
    tolerance = TOLERANCE if image.dtype in (torch.float32, torch.float64) else TOLERANCE_OF_HALF
    with undisturbed(network), _showing(modules, layout.names) as shown, AttentionTaps(network, layout) as taps:
        network(image)
        for name in layout.names:
            parts, own = taps.parts(name), shown.get(name)
            computed = None if parts is None else BlockAttention(parts, layout).probabilities()
            if computed is None or own is None or not _difference(own, computed) <= tolerance:
                raise ConfigError(
                    f"attention='class_token' cannot be read from {type(network).__name__}: {name!r}, a "
                    f"{type(modules[name]).__name__}, attends by more than queries and keys (relative positions, "
                    "perhaps), or does not show how; choose another kind of attention."
                )


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.to(other.dtype) - other).abs().max()) if one.shape == other.shape else torch.inf


@contextmanager
def _showing(modules: dict[str, nn.Module], names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Have attention modules show the probabilities [B, heads, N, N] that they compute themselves, by name."""
    shown: dict[str, Tensor] = {}

    def dropped(name: str) -> Any:
        def listen(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            shown[name] = args[0]

        return listen

    def weighed(name: str) -> Any:
        def listen(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Any) -> None:
            arguments = {**kwargs, "need_weights": True, "average_attn_weights": False}
            shown[name] = module.forward(*args[:3], **arguments)[1]

        return listen

    with ExitStack() as hooks:
        for name in names:
            module: Any = modules[name]
            if isinstance(module, nn.MultiheadAttention):
                hooks.callback(module.register_forward_hook(weighed(name), with_kwargs=True).remove)
            elif isinstance(getattr(module, "attn_drop", None), nn.Module):
                hooks.callback(module.attn_drop.register_forward_pre_hook(dropped(name)).remove)
                if getattr(module, "fused_attn", False):
                    # fused kernels do not show them
                    hooks.callback(setattr, module, "fused_attn", module.fused_attn)
                    module.fused_attn = False
        yield shown


def _in_words(layout: AttentionLayout) -> str:
    rows, columns = layout.grid
    what = "from the class token" if layout.has_class_token else "mean over all patches, as it has no class token"
    return (
        f"{', '.join(layout.names)}, on {rows} x {columns} patches behind {layout.prefix} other tokens ({what}); its "
        "probabilities are those of the modules themselves"
    )
