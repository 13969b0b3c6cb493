"""The teacher's own preprocessing: its normalisation and, for a network of one size, its image size.

The run's images are normalised for the student. A teacher that was trained with another mean or standard deviation, or
at another size, sees the same pixels as it was trained to.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from attention_transfer.config import Config
from attention_transfer.errors import ConfigError
from attention_transfer.logs import log_once
from attention_transfer.modules import constants, unwrapped
from attention_transfer.networks.architecture import Size
from attention_transfer.networks.registry import card_of

Triple = tuple[float, float, float]
CHANNELS = 3


class TrainedOn(NamedTuple):
    """The images that a network was trained on; the attribute `trained_on` of a loaded teacher.

    Attributes:
        mean: of each channel, of pixels in [0, 1].
        std: likewise.
        source: where that is from, in words.
    """

    mean: Triple
    std: Triple
    source: str


@dataclass(frozen=True)
class Preprocessing:
    """What is done to the run's images before a teacher sees them; with the defaults nothing.

    Attributes:
        factor: of each channel; None: 1.
        shift: added to each channel afterwards.
        size: (H, W) to which images are resized, bicubic and antialiased; None: they stay.

    Example:
        >>> Preprocessing(size=(4, 4))(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 3, 4, 4])
    """

    factor: tuple[float, ...] | None = None
    shift: tuple[float, ...] = (0.0, 0.0, 0.0)
    size: Size | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """The images [B, C, h, w] as the teacher sees them, from the run's [B, C, H, W].

        Raises:
            ConfigError: another mean is set for images that do not have three channels.
        """
        if self.size is not None and images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        if self.factor is None:
            return images
        if images.shape[1] != CHANNELS:
            raise ConfigError(
                f"the teacher has a mean and a standard deviation of its own for 3 channels, but the images have "
                f"{images.shape[1]}; set teacher_mean and teacher_std to 'run'."
            )
        factor, shift = constants(self.factor, images), constants(self.shift, images)
        return images * factor[:, None, None] + shift[:, None, None]

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it another one, for the cache key; empty if nothing is done."""
        if self == UNCHANGED:
            return {}
        return {"preprocessing": [self.factor, self.shift, self.size]}


UNCHANGED = Preprocessing()


def preprocessing_of(teacher: nn.Module, config: Config, images: Tensor) -> Preprocessing:
    """What is done to a run's images before the teacher sees them; what differs from the run is logged once.

    'auto' asks, in this order: the teacher's checkpoint, timm's pretrained_cfg, the transforms of torchvision's
    weights, and takes the run's own where none of them is there. Images are resized only for a network of one size.

    Args:
        teacher: any network, also inside wrappers.
        config: uses mean, std, teacher_mean, teacher_std and teacher_image_size.
        images: [B, C, H, W] of the run.
    """
    mean, std, source = _normalisation(unwrapped(teacher), config)
    target, size = _size(config, unwrapped(teacher)), (images.shape[2], images.shape[3])
    factor, shift = UNCHANGED.factor, UNCHANGED.shift
    if (mean, std) != (config.mean, config.std):
        factor = tuple(own / other for own, other in zip(config.std, std, strict=True))
        shift = tuple((m - n) / s for m, n, s in zip(config.mean, mean, std, strict=True))
        log_once(
            f"the teacher sees its own normalisation, from {source}: mean {_in_words(mean)}, std {_in_words(std)} (the "
            f"run has {_in_words(config.mean)} and {_in_words(config.std)}); teacher_mean and teacher_std change that",
            logging.INFO,
        )
    if target == size:
        target = None
    if target is not None:
        log_once(
            f"the teacher is for images of {target[0]}x{target[1]}: those of {size[0]}x{size[1]} are resized for it, "
            "bicubic and antialiased; teacher_image_size changes that",
            logging.INFO,
        )
    return Preprocessing(factor, shift, target)


def sees(teacher: nn.Module, config: Config) -> str:
    """What a teacher sees of a run's images, in words that differ wherever it sees something else.

    Args:
        teacher: any network, also inside wrappers.
        config: as for `preprocessing_of`.
    """
    mean, std, _ = _normalisation(unwrapped(teacher), config)
    size = _size(config, unwrapped(teacher))
    at = "the run's image size" if size is None else f"{size[0]}x{size[1]}"
    return f"images of mean {_in_words(mean, 6)} and std {_in_words(std, 6)} at {at}"


def size_to_build_for(config: Config) -> Size | None:
    """The (H, W) for which a teacher of one size is built, by teacher_image_size; None: its own."""
    setting = config.teacher_image_size
    if setting == "auto":
        return None
    chosen: Any = config.image_size if setting == "run" else setting
    return (chosen, chosen) if isinstance(chosen, int) else chosen


def trained_on(network: nn.Module) -> TrainedOn | None:
    """The images that a network was trained on, as far as it tells; None if it does not."""
    told: Any = getattr(network, "trained_on", None)
    if isinstance(told, TrainedOn):
        return told
    config: Any = getattr(network, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("mean") and config.get("std"):
        return TrainedOn(_triple(config["mean"]), _triple(config["std"]), "timm's pretrained_cfg")
    return None


def one_size_of(network: nn.Module) -> Size | None:
    """The only (H, W) of images that a network takes; None if it takes many, or does not tell."""
    card = card_of(network)
    if card is not None and card.image_size is not None:
        return card.image_size
    config: Any = getattr(network, "pretrained_cfg", None)
    if isinstance(config, dict):
        return _one_size_of_timm(network, config)
    return _one_size_of_torchvision(network) if type(network).__module__.startswith("torchvision.models.") else None


def _one_size_of_torchvision(network: nn.Module) -> Size | None:
    side: Any = getattr(network, "image_size", None)
    if isinstance(side, int):  # VisionTransformer
        return side, side
    blocks: Any = getattr(network, "blocks", None)
    grid: Any = getattr(blocks[0], "grid_size", None) if isinstance(blocks, nn.ModuleList) and len(blocks) else None
    # MaxVit: the stem and the first block halve each side
    return None if grid is None else (4 * grid[0], 4 * grid[1])


def _one_size_of_timm(network: nn.Module, config: dict[str, Any]) -> Size | None:
    if not config.get("fixed_input_size"):
        return None
    embedding: Any = getattr(network, "patch_embed", None)
    if getattr(embedding, "dynamic_img_pad", False) or getattr(network, "dynamic_img_size", False):
        return None
    built_for: Any = getattr(embedding, "img_size", None)
    size = built_for if isinstance(built_for, Sequence) else config["input_size"][-2:]
    return int(size[0]), int(size[1])


def _normalisation(network: nn.Module, config: Config) -> TrainedOn:
    known = trained_on(network) or TrainedOn(config.mean, config.std, "the run")
    mean = _chosen(config.teacher_mean, known.mean, config.mean)
    std = _chosen(config.teacher_std, known.std, config.std)
    return TrainedOn(mean, std, known.source if config.teacher_mean == "auto" else "the settings")


def _chosen(setting: Any, own: Triple, of_run: Triple) -> Triple:
    if setting == "auto":
        return own
    return of_run if setting == "run" else _triple(setting)


def _size(config: Config, network: nn.Module) -> Size | None:
    setting = config.teacher_image_size
    if setting == "auto":
        return one_size_of(network)
    if setting == "run":
        return None
    return (setting, setting) if isinstance(setting, int) else setting


def _triple(values: Sequence[float]) -> Triple:
    if len(values) != CHANNELS:
        raise ConfigError(f"a mean or a standard deviation has {len(values)} numbers; it must have 3.")
    return float(values[0]), float(values[1]), float(values[2])


def _in_words(values: Sequence[float], digits: int = 3) -> str:
    return "(" + ", ".join(f"{value:.{digits}g}" for value in values) + ")"
