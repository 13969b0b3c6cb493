"""Networks of timm and torchvision by name: `timm/NAME` and `torchvision/NAME`."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from attention_transfer.catalogue import TIMM, TORCHVISION, library_of
from attention_transfer.errors import ConfigError
from attention_transfer.logs import log_once
from attention_transfer.networks.architecture import Architecture, Size

logger = logging.getLogger(__name__)

_PROBED_CLASSES = 7
"""A number of classes that no layer inside a network has as its width."""
HOW_HEADS_BEGIN = "with torch's own initial weights of such a layer"
AUXILIARY = {"GoogLeNet": ("aux1", "aux2"), "Inception3": ("AuxLogits",)}


@lru_cache(maxsize=64)
def library_architecture(name: str) -> Architecture:
    """The description of a library's network, as the registry has one for each of our families.

    Its taps are empty: a pass over the network finds them; see `features.stages`.

    Args:
        name: 'timm/NAME' or 'torchvision/NAME'.

    Raises:
        ConfigError: the library has no such network; the message gives the nearest names.
    """
    return Architecture(
        name_pattern=re.escape(name),
        build=lambda num_classes: build(name, num_classes),
        taps=(),
        head=heads_of(name)[0],
        candidates=lambda shapes: [name],
    )


@lru_cache(maxsize=64)
def heads_of(name: str) -> tuple[str, ...]:
    """The layers that put out logits: the first is the head, others are of distillation or of auxiliary losses.

    Args:
        name: 'timm/NAME' or 'torchvision/NAME'.

    Raises:
        ConfigError: the library has no such network, or it is no classifier.
    """
    network = without_memory(partial(build, name, _PROBED_CLASSES))
    auxiliary = AUXILIARY.get(type(network).__name__, ())
    heads = [
        key
        for key, module in network.named_modules()
        if classes_of_head(module) == _PROBED_CLASSES and key.split(".")[0] not in auxiliary
    ]
    if not heads:
        raise ConfigError(f"{name} has no layer that puts out logits; take a network that is a classifier.")
    named: Any = getattr(network, "pretrained_cfg", {}).get("classifier")
    first = named[0] if isinstance(named, tuple | list) else named
    return tuple(sorted(heads, key=lambda head: head != first))


def renew_heads(network: nn.Module, name: str) -> None:
    """Initialise the heads of a library's network as torch does a Linear: uniformly, within 1 / sqrt(inputs).

    The libraries' own initial weights are for a network that is trained from scratch, for many classes: some become
    larger the fewer classes there are (EfficientNet's have a standard deviation of 0.4 for two), so that on a
    pretrained backbone the first logits would be large and wrong.

    Args:
        network: changed in place.
        name: 'timm/NAME' or 'torchvision/NAME'.
    """
    for head in heads_of(name):
        module: Any = network.get_submodule(head)
        module.reset_parameters()


def without_memory(build_network: Callable[[], nn.Module]) -> nn.Module:
    """A network on the meta device; on the CPU if it computes with its weights while it is built, as RegNet does."""
    try:
        with torch.device("meta"):
            return build_network()
    except ConfigError as error:
        if not isinstance(error.__cause__, NotImplementedError):
            raise
    with torch.random.fork_rng(devices=[]):
        return build_network()


def classes_of_head(head: nn.Module | None) -> int | None:
    """The number of logits of a head, a Linear or a 1x1 convolution; None for any other module."""
    if isinstance(head, nn.Linear):
        return head.out_features
    return head.out_channels if isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1) else None


def build(name: str, num_classes: int, image_size: Size | None = None) -> nn.Module:
    """A new network of a library, with random weights.

    Args:
        name: 'timm/NAME' or 'torchvision/NAME'.
        num_classes: number of logits.
        image_size: (H, W) of the images, for networks of one size; None: the network's own.

    Raises:
        ConfigError: the library has no such network, or it cannot be built for this image size.
    """
    library, short = library_of(name)
    with _explaining(name, image_size):
        if library == TIMM:
            return build_timm(short, num_classes, image_size)
        return _build_torchvision(short, num_classes, image_size)


@contextmanager
def _explaining(name: str, image_size: Size | None) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        size = "" if image_size is None else f" for images of {image_size[0]}x{image_size[1]}"
        raise ConfigError(f"{name} cannot be built{size} ({type(error).__name__}: {error}).") from error


def build_timm(name: str, num_classes: int, image_size: Size | None, **weights: Any) -> nn.Module:
    import timm

    sized = _timm_size(name, image_size)
    network: nn.Module = timm.create_model(name, num_classes=num_classes, **sized, **weights)
    return network


def _timm_size(name: str, image_size: Size | None) -> dict[str, Any]:
    """The argument that makes a network of timm for images of this size; none where it takes any size."""
    own = fixed_size(f"{TIMM}/{name}")
    if image_size is None or own in (None, image_size):
        return {}
    return {"img_size": image_size[0] if image_size[0] == image_size[1] else image_size}


def _build_torchvision(name: str, num_classes: int, image_size: Size | None) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(models):
        raise ConfigError(
            f"torchvision has no classification network {name!r}.{_near(name, models.list_models(models))}"
        )
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # auxiliary heads are for torchvision's own training recipe
        options = {"init_weights": True, "aux_logits": False}
    own = fixed_size(f"{TORCHVISION}/{name}")
    if image_size is not None and own not in (None, image_size):
        options |= _torchvision_size(name, image_size)
    network: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **options)
    return network


def _torchvision_size(name: str, image_size: Size) -> dict[str, Any]:
    if name.startswith("vit_"):
        if image_size[0] != image_size[1]:
            raise ConfigError(f"{TORCHVISION}/{name} takes square images; image_size is {image_size}.")
        return {"image_size": image_size[0]}
    return {"input_size": image_size}


def weights_for_size(name: str, weights: dict[str, Any], image_size: Size) -> dict[str, Any]:
    """Weights of a library's network of one size, resampled for images of another.

    Args:
        name: 'timm/NAME' or 'torchvision/NAME'.
        weights: of the network as it is published.
        image_size: (H, W) of the images.

    Raises:
        ConfigError: the network cannot resample its weights.
    """
    classes = {len(weights[f"{head}.weight"]) for head in heads_of(name) if f"{head}.weight" in weights}
    network = build(name, classes.pop() if len(classes) == 1 else 1)
    resize: Any = getattr(network, "set_input_size", None)
    if resize is None:
        own = fixed_size(name)
        raise ConfigError(f"{name} has its weights for images of {own} alone; set image_size, or take a new network.")
    heads = tuple(f"{head}." for head in heads_of(name))
    missing = {key: value for key, value in network.state_dict().items() if key not in weights}
    if unexpected := [key for key in missing if not key.startswith(heads)]:
        raise ConfigError(f"the weights do not fit {name}: {unexpected[0]} is missing.")
    with torch.no_grad():
        network.load_state_dict({**missing, **weights})
        resize(img_size=image_size)
    return {key: value for key, value in network.state_dict().items() if key not in missing}


def ignore_auxiliary_heads(network: nn.Module) -> None:
    """Leave the auxiliary heads of torchvision's GoogLeNet and Inception v3 out of training; logged once.

    They are for losses of torchvision's own recipe, and in train mode the network would put out a tuple with their
    logits. Their weights are frozen, so that no process waits for gradients that never come, and stay in the state.

    Args:
        network: not wrapped; any other network is left as it is.
    """
    parts = AUXILIARY.get(type(network).__name__, ())
    heads = [getattr(network, part, None) for part in parts]
    if not getattr(network, "aux_logits", False) or not all(isinstance(head, nn.Module) for head in heads):
        return
    for head in heads:
        assert isinstance(head, nn.Module)
        head.requires_grad_(False)
    network.aux_logits = False  # type: ignore[assignment]
    log_once(f"the auxiliary heads of {type(network).__name__}, {' and '.join(parts)}, are frozen and ignored")


def fixed_size(name: str) -> Size | None:
    """The only (H, W) of images that a library's network takes as it is published; None: it takes many.

    Args:
        name: 'timm/NAME' or 'torchvision/NAME'.
    """
    library, short = library_of(name)
    if library == TIMM:
        import timm

        if not timm.is_model(short):
            raise ConfigError(f"timm has no network {short!r}.{_near(short, timm.list_models())}")
        with _explaining(name, None):
            config: Any = timm.get_pretrained_cfg(short)
        return config.input_size[-2:] if config is not None and config.fixed_input_size else None
    return (224, 224) if short.startswith(("vit_", "maxvit")) and short != "vit_h_14" else None


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return f" Near are {', '.join(near)}." if near else ""
