"""Our table of the stages of torchvision's classification networks, by the class of the network.

torchvision does not document stages. The table names the blocks between which its networks change the resolution; where
the blocks of a family are a chain of children, the last child before each change is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.stages.layouts import outputs_of
from attention_transfer.features.stages.stage import Choice, Stage, deepest_of_each_size
from attention_transfer.networks.readout import NCHW, NHWC, Readout, tokens

_HOME = "torchvision.models."


class _Entry(NamedTuple):
    """A family's stages.

    Attributes:
        names: of the candidates, given the network.
        readout: of their outputs, given the network and the image; NCHW for most.
    """

    names: Callable[[Any], Sequence[str]]
    readout: Callable[[Any, Tensor], Readout] = lambda network, image: NCHW


def _named(*names: str) -> Callable[[Any], Sequence[str]]:
    return lambda network: names


def _chain(path: str, without_last: int = 0) -> Callable[[Any], Sequence[str]]:
    """The children of a chain, without those at its end that only widen the last stage for the head."""

    def names(network: Any) -> Sequence[str]:
        children = [f"{path}.{name}" for name, _ in network.get_submodule(path).named_children()]
        return children[: len(children) - without_last]

    return names


def _encoder_layers(network: Any) -> Sequence[str]:
    return [f"encoder.layers.{name}" for name, _ in network.encoder.layers.named_children()]


def _patches_behind_class_token(network: Any, image: Tensor) -> Readout:
    side = network.patch_size
    return tokens(image.shape[2] // side, image.shape[3] // side, prefix=1)


def _nhwc(network: Any, image: Tensor) -> Readout:
    return NHWC


TABLE: dict[str, _Entry] = {
    "AlexNet": _Entry(_chain("features")),
    "ConvNeXt": _Entry(_named("features.1", "features.3", "features.5", "features.7")),
    "DenseNet": _Entry(
        _named("features.denseblock1", "features.denseblock2", "features.denseblock3", "features.denseblock4")
    ),
    "EfficientNet": _Entry(_chain("features", without_last=1)),
    "GoogLeNet": _Entry(_named("conv3", "inception3b", "inception4e", "inception5b")),
    "Inception3": _Entry(_named("Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c")),
    "MNASNet": _Entry(_chain("layers", without_last=3)),
    "MaxVit": _Entry(_chain("blocks")),
    "MobileNetV2": _Entry(_chain("features", without_last=1)),
    "MobileNetV3": _Entry(_chain("features", without_last=1)),
    "RegNet": _Entry(_chain("trunk_output")),
    "ResNet": _Entry(_named("layer1", "layer2", "layer3", "layer4")),
    "ShuffleNetV2": _Entry(_named("maxpool", "stage2", "stage3", "stage4")),
    "SqueezeNet": _Entry(_chain("features")),
    "SwinTransformer": _Entry(_named("features.1", "features.3", "features.5", "features.7"), _nhwc),
    "VGG": _Entry(_chain("features")),
    "VisionTransformer": _Entry(_encoder_layers, _patches_behind_class_token),
}
"""By the name of the class; a subclass of the user's counts as its base."""


def is_of_torchvision(network: nn.Module) -> bool:
    """Whether it is a network of one of torchvision's families in the table."""
    return _entry_of(network) is not None


def _entry_of(network: nn.Module) -> _Entry | None:
    bases = [base for base in type(network).__mro__ if base.__module__.startswith(_HOME)]
    return next((TABLE[base.__name__] for base in bases if base.__name__ in TABLE), None)


def torchvision_stages(network: nn.Module, image: Tensor) -> Choice:
    """The stages of a network of torchvision, shallow to deep.

    Args:
        network: in the table; left unchanged.
        image: [1, C, H, W], its input.

    Raises:
        ConfigError: a module of the table is missing, as in a network that was changed, or puts out something else.
    """
    entry = _entry_of(network)
    assert entry is not None
    names, readout = entry.names(network), entry.readout(network, image)
    modules = dict(network.named_modules())
    if missing := [name for name in names if name not in modules]:
        raise ConfigError(
            f"{type(network).__name__} of torchvision has no module {missing[0]!r} any more; name the modules to "
            "compare with the key 'layers'."
        )
    outputs = outputs_of(network, image, names)
    found = [Stage(name, readout, _size(readout(name, outputs[name]))) for name in names if name in outputs]
    return Choice(deepest_of_each_size(found), tuple(found))


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]
