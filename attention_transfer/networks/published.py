"""Published weights of timm's and torchvision's networks: read or fetched, or an error that says where to put them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attention_transfer.catalogue import TIMM, TORCHVISION, library_of
from attention_transfer.errors import ConfigError
from attention_transfer.networks.architecture import Size
from attention_transfer.networks.libraries import (
    AUXILIARY,
    HOW_HEADS_BEGIN,
    build,
    build_timm,
    fixed_size,
    heads_of,
    renew_heads,
)

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

logger = logging.getLogger(__name__)


def load_pretrained(name: str, num_classes: int, weights: str, image_size: Size | None = None) -> nn.Module:
    """A library's network with its published weights; a head for other classes is newly initialised, and named.

    Args:
        name: 'timm/NAME' or 'torchvision/NAME'.
        num_classes: number of logits.
        weights: 'DEFAULT', or the name of an entry: a tag of timm (as 'a1_in1k'), an entry of torchvision.
        image_size: (H, W) of the images, for networks of one size.

    Raises:
        ConfigError: there are no such weights, or they can be neither read nor fetched; the message then says where to
            get them and how to name the file.
    """
    library, short = library_of(name)
    if library == TIMM:
        network = _pretrained_timm(short, num_classes, weights, image_size)
    else:
        network = _pretrained_torchvision(short, num_classes, weights, image_size)
    published = published_classes(name, weights)
    # a backbone with a single logit is a teacher's, whose head is emptied
    if published != num_classes and (published or num_classes > 1):
        why = "the head tells other classes apart" if published else "the weights have no head"
        log_new_head(name, num_classes, why)
        renew_heads(network, name)
    return network


def published_classes(name: str, weights: str) -> int:
    """The number of classes of a library's published weights; 0 for a backbone without a head.

    Args:
        name: 'timm/NAME' or 'torchvision/NAME'.
        weights: 'DEFAULT', a tag of timm, an entry of torchvision.

    Raises:
        ConfigError: there is no such network, or no such weights.
    """
    library, short = library_of(name)
    if library == TIMM:
        import timm

        config: Any = timm.get_pretrained_cfg(_tagged(short, weights))
        return int(config.num_classes)
    return len(torchvision_weights(short, weights).meta["categories"])


def torchvision_weights(name: str, weights: str) -> Any:
    """The entry of torchvision's table of weights for a network.

    Raises:
        ConfigError: there is no such network, or no such entry.
    """
    from torchvision import models

    heads_of(f"{TORCHVISION}/{name}")  # refuses an unknown network
    table = models.get_model_weights(name)
    if weights.upper() not in table.__members__:
        known = ", ".join(table.__members__)
        raise ConfigError(f"weights is {weights!r}, which torchvision does not have for {name}; it has {known}.")
    return table[weights.upper()]


def _tagged(name: str, weights: str) -> str:
    """timm's name of a network with the tag of its weights, as in 'resnet18.a1_in1k'.

    Raises:
        ConfigError: timm has no such network, or no such weights for it.
    """
    import timm

    stem, _, own_tag = name.partition(".")
    fixed_size(f"{TIMM}/{stem}")  # refuses an unknown network
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{stem}.*")]
    tag = own_tag if weights.upper() == "DEFAULT" else weights
    if not tags or (tag and tag not in tags):
        known = ", ".join(tags) or "no weights at all"
        raise ConfigError(f"weights is {tag or weights!r}, which timm does not have for {stem}; it has {known}.")
    return f"{stem}.{tag}" if tag else stem


def log_new_head(name: str, num_classes: int, why: str) -> None:
    """Log which layers of a library's network are newly initialised for these classes, how, and why."""
    heads = heads_of(name)
    logger.info(
        "%s: %s, so %s %s newly initialised for %d classes, %s",
        name, why, " and ".join(heads), "is" if len(heads) == 1 else "are", num_classes, HOW_HEADS_BEGIN,
    )  # fmt: skip


def _pretrained_timm(name: str, num_classes: int, weights: str, image_size: Size | None) -> nn.Module:
    import timm

    full = _tagged(name, weights)
    try:
        return build_timm(full, num_classes, image_size, pretrained=True)
    except ConfigError:
        raise
    # a hub that is out of reach raises half a dozen unrelated types, and the remedy is the same
    except Exception as error:
        config: Any = timm.get_pretrained_cfg(full)
        raise ConfigError(
            f"timm's weights {full} could not be loaded ({_first_line(error)}). Download them where there is a network "
            f"({_source(config)}), and name the file: weights=PATH for the student; for the teacher teacher_model=PATH "
            f"and teacher_arch='{TIMM}/{name}'."
        ) from error


def _source(config: Any) -> str:
    return f"{config.hf_hub_id} on the hub of models" if config.hf_hub_id else str(config.url)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _pretrained_torchvision(name: str, num_classes: int, weights: str, image_size: Size | None) -> nn.Module:
    entry = torchvision_weights(name, weights)
    network = build(f"{TORCHVISION}/{name}", num_classes, image_size)
    load_without_other_heads(network, published_weights(type(entry), entry.name), f"{TORCHVISION}/{name}")
    return network


def load_without_other_heads(network: nn.Module, state: Mapping[str, Tensor], name: str) -> bool:
    """Load weights into a library's network; heads of other classes, and auxiliary ones, are left out.

    Args:
        network: filled in place.
        state: weights of such a network.
        name: 'timm/NAME' or 'torchvision/NAME'.

    Returns:
        whether the network's own head was left as it is.

    Raises:
        ConfigError: other keys or shapes differ.
    """
    own = network.state_dict()
    heads = tuple(f"{head}." for head in heads_of(name))
    auxiliary = tuple(f"{part}." for part in AUXILIARY.get(type(network).__name__, ()))
    fitting = {key: value for key, value in state.items() if not key.startswith(auxiliary)} if auxiliary else state
    of_head = [key for key in own if key.startswith(heads)]
    other = any(key not in fitting or fitting[key].shape != own[key].shape for key in of_head)
    if other:
        fitting = {key: value for key, value in fitting.items() if not key.startswith(heads)}
        fitting |= {key: value for key, value in own.items() if key.startswith(heads)}
    try:
        network.load_state_dict(dict(fitting))
    except RuntimeError as error:
        raise ConfigError(f"the weights do not fit {name}: {error}") from error
    return other


def published_weights(published: type[WeightsEnum], name: str) -> dict[str, Tensor]:
    """The state_dict (tensors [...] by key) of torchvision's weights `name`, from the torch hub folder or downloaded.

    Args:
        published: torchvision's table of weights for one network.
        name: an entry of it, such as 'IMAGENET1K_V1' or 'DEFAULT', in any case.

    Raises:
        ConfigError: the table has no such entry, or the file can be neither read nor downloaded; the
            message then says where to put it by hand.
    """
    if name.upper() not in published.__members__:
        known = ", ".join(published.__members__)
        raise ConfigError(f"weights is {name!r}, which torchvision does not have here; it has {known}.")
    weights = published[name.upper()]
    file = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[-1])
    try:
        return dict(weights.get_state_dict(check_hash=True, map_location="cpu", weights_only=True))
    # A damaged file may raise half a dozen unrelated types, and the remedy is the same.
    except Exception as error:
        raise ConfigError(
            f"torchvision's weights {published.__name__}.{weights.name} could not be loaded ({error}). "
            f"Download {weights.url} where there is a network, and put it here as {file}."
        ) from error
