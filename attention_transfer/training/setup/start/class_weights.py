"""The weights of the classes in the cross-entropy of a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from attention_transfer.class_names import SHOWN_NAMES, numbers_as_names
from attention_transfer.config import Config
from attention_transfer.data.balance import inverse_frequency_weights
from attention_transfer.data.class_table import ClassCounts
from attention_transfer.errors import ConfigError
from attention_transfer.training.checkpointing.resume import ResumePoint

logger = logging.getLogger(__name__)


def choose_class_weights(config: Config, counts: ClassCounts | None, point: ResumePoint) -> tuple[float, ...] | None:
    """The weight of each class, in the order of the classes: as set, or for 'auto' by the training images; logged.

    A resumed run keeps its weights.

    Args:
        config: uses class_weights, with num_classes and class_names resolved.
        counts: images by class and split, if known.
        point: what is resumed.

    Returns:
        K numbers above 0; None for a run whose classes have equal weights.

    Raises:
        ConfigError: their number is not that of the classes; or 'auto', and the number of training images of a class is
            unknown or 0.
    """
    weights = config.class_weights
    if weights is None:
        return None
    names = config.class_names or numbers_as_names(config.num_classes or 0)
    if weights != "auto":
        if len(weights) != len(names):
            raise ConfigError(
                f"class_weights has {len(weights)} numbers, but there are {len(names)} classes; give one for each, in "
                "the order of the classes."
            )
        return weights
    chosen = _kept(config, point) or _by_frequency(counts)
    logger.info("class_weights 'auto': %s", _in_words(names, chosen))
    return chosen


def _kept(config: Config, point: ResumePoint) -> tuple[float, ...] | None:
    if point.checkpoint is None or point.checkpoint["training"] is None or not point.goes_on(config):
        return None
    return tuple(point.checkpoint["training"].get("class_weights") or ()) or None


def _by_frequency(counts: ClassCounts | None) -> tuple[float, ...]:
    images = {name: of_class["train"] for name, of_class in (counts or {}).items() if "train" in of_class}
    if not images:
        raise ConfigError(
            "class_weights is 'auto', but how many training images each class has is unknown: the data set of "
            "train_loader has no `targets`, or its sampler leaves some out; give class_weights as a list of numbers, "
            "in the order of the classes."
        )
    without = [name for name, count in images.items() if not count]
    if without:
        raise ConfigError(
            f"class_weights is 'auto', but the class {without[0]!r} has no training images; give class_weights as a "
            "list of numbers, in the order of the classes, or leave the class out."
        )
    return inverse_frequency_weights(list(images.values()))


def _in_words(names: Sequence[str], weights: Sequence[float]) -> str:
    pairs = [f"{name} {weight:.4g}" for name, weight in zip(names, weights, strict=True)]
    if len(pairs) <= SHOWN_NAMES:
        return ", ".join(pairs)
    return f"{', '.join(pairs[:SHOWN_NAMES])}, ... ({len(pairs)} in all, from {min(weights):.4g} to {max(weights):.4g})"
