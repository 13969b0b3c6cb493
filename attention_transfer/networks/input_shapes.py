"""Checking that a network takes images of some shape; if not, an error that names the layer and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from attention_transfer.errors import AttentionTransferError, DataError, TeacherError
from attention_transfer.modules import like_weights, undisturbed, unwrapped

TEACHER = "teacher"

_COLOURS = (1, 3, 4)


class _Entered(NamedTuple):
    """A layer with weights that a forward pass has reached, and the shape of its input."""

    name: str
    layer: nn.Module
    shape: tuple[int, ...]


@contextmanager
def refusing_misfits(network: nn.Module, images: Tensor, role: str) -> Iterator[None]:
    """Replace an error raised inside by one with a remedy, if images [B, C, H, W] do not fit a network's layers.

    Other errors pass through unchanged. Arguments and errors are those of `raise_if_misfit`.
    """
    try:
        yield
    except Exception as error:
        raise_if_misfit(error, network, images, role)
        raise


def raise_if_misfit(error: Exception, network: nn.Module, images: Tensor, role: str) -> None:
    """Raise an error with a remedy in place of one raised by a pass, if images do not fit the network's layers.

    Args:
        error: what the pass has raised.
        network: also inside wrappers.
        images: [B, C, H, W], its input.
        role: student, teacher or network, for the message.

    Raises:
        TeacherError: a teacher cannot take the images.
        DataError: another network cannot.
    """
    # if neither network fits, the images are wrong and not the teacher
    is_explained = isinstance(error, AttentionTransferError) and not isinstance(error, TeacherError)
    if is_explained or isinstance(error, torch.OutOfMemoryError):
        return
    misfit = find_misfit(network, images, role)
    if misfit is not None:
        raise misfit from error


def find_misfit(network: nn.Module, images: Tensor, role: str) -> DataError | TeacherError | None:
    """Run a network on one image; the error to raise if a layer cannot take its input, with the remedy.

    The network is run in eval mode and is unchanged afterwards. None is returned also if it fails for another reason,
    which its own error explains best, and for a network whose lazy layers have no weights yet.

    Args:
        network: also inside wrappers.
        images: [B, C, H, W].
        role: student, teacher or network.
    """
    inner = unwrapped(network)
    if any(map(is_lazy, inner.parameters())):
        return None
    entered, error = _run_until_it_fails(inner, images[:1])
    found = None if not entered else _expected_and_found(entered[-1])
    if found is not None:
        reason = f"{_where(entered, *found)}; {_remedy(entered, images, role, *found)}"
    elif error is not None and _is_of_a_library(inner):
        reason = f"{_first_line(error)}; {_remedy_of_sizes(inner, role)}"
    else:
        return None
    sentence = f"the {role} {type(inner).__name__} cannot take images of shape {list(images.shape)}: {reason}."
    return TeacherError(sentence) if role == TEACHER else DataError(sentence)


def _is_of_a_library(network: nn.Module) -> bool:
    return type(network).__module__.startswith(("timm.models.", "torchvision.models."))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [f"{type(error).__name__} in its forward pass"])[0].rstrip(".")


def _remedy_of_sizes(network: nn.Module, role: str) -> str:
    """A network of a library may be made for one size, or for multiples of a stride."""
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    published = f" (it is published for {size[-2]}x{size[-1]})" if size else ""
    return f"set an image_size that the {role} takes{published}, or choose another network"


def _run_until_it_fails(network: nn.Module, image: Tensor) -> tuple[list[_Entered], Exception | None]:
    """The layers with weights that a pass reached before it failed, and its error; none if it did not fail."""
    entered: list[_Entered] = []

    def listener(name: str) -> Any:
        def listen(layer: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                entered.append(_Entered(name, layer, tuple(args[0].shape)))

        return listen

    layers = [pair for pair in network.named_modules() if isinstance(pair[1], _ConvNd | nn.Linear | _BatchNorm)]
    hooks = [layer.register_forward_pre_hook(listener(name)) for name, layer in layers]
    try:
        with undisturbed(network):
            network(like_weights(image, network))
    except Exception as error:
        return entered, error
    finally:
        for hook in hooks:
            hook.remove()
    return [], None


def _expected_and_found(entered: _Entered) -> tuple[int, int] | None:
    """The number of channels or values that a layer takes and gets; None if they agree."""
    layer, shape = entered.layer, entered.shape
    if isinstance(layer, nn.Linear):
        pair = layer.in_features, shape[-1] if shape else 1
    elif len(shape) < 2:
        return None
    elif isinstance(layer, _ConvNd):
        pair = layer.in_channels, shape[1]
    else:
        assert isinstance(layer, _BatchNorm)
        pair = layer.num_features, shape[1]
    return None if pair[0] == pair[1] else pair


def _where(entered: list[_Entered], expected: int, found: int) -> str:
    last = entered[-1]
    what = "values" if isinstance(last.layer, nn.Linear) else "channel" + ("s" if expected != 1 else "")
    first = "first " if len(entered) == 1 else ""
    name = f" {last.name!r}" if last.name else ""
    return f"its {first}layer{name} ({type(last.layer).__name__}) takes {expected} {what}, and {found} came"


def _remedy(entered: list[_Entered], images: Tensor, role: str, expected: int, found: int) -> str:
    _, channels, height, width = images.shape
    if width in _COLOURS and channels not in _COLOURS and height not in _COLOURS:
        return "give images as [B, C, H, W]: images.permute(0, 3, 1, 2)"
    if isinstance(entered[-1].layer, nn.Linear):
        return (
            "give images of the size and the number of channels that it was made for, or put nn.AdaptiveAvgPool2d "
            "before this layer"
        )
    if len(entered) > 1 or found != channels:
        return "its layers do not fit one another for such images; repair the network, or give it other images"
    return _remedy_of_channels(role, expected, channels)


def _remedy_of_channels(role: str, expected: int, channels: int) -> str:
    if channels == 1:
        return (
            f"repeat the grey channel, as images.expand(-1, {expected}, -1, -1) or torchvision's Grayscale({expected}) "
            f"do, or take a {role} whose first layer takes 1 channel"
        )
    if expected > 1:
        return f"give images of {expected} channels, or take a {role} whose first layer takes {channels}"
    if role == TEACHER:
        return (
            f"take a teacher for images of {channels} channels, or put a layer before it that averages them, as in "
            "nn.Sequential(torchvision.transforms.Grayscale(), teacher)"
        )
    return f"make the images grey, as torchvision's Grayscale() does, or take a {role} for {channels} channels"
