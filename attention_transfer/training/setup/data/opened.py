"""The data of a run: its loaders opened, their classes, first batches and images checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

from torch import Tensor, nn

from attention_transfer.class_names import numbers_as_names
from attention_transfer.config import Config
from attention_transfer.data.balance import class_counts, imbalance_warning
from attention_transfer.data.batches import Batch
from attention_transfer.data.class_table import ClassCounts, class_table, images_per_class
from attention_transfer.data.loading.loaders import own_dataset
from attention_transfer.data.loading.user_loaders import classes_of
from attention_transfer.distributed import AcceleratedRuntime, all_or_raise
from attention_transfer.networks.preprocessing import preprocessing_of
from attention_transfer.training.checkpointing.best_epoch import check_can_be_measured
from attention_transfer.training.checkpointing.resume import ResumePoint, resumed_classes
from attention_transfer.training.setup.checking import check_first_images
from attention_transfer.training.setup.data.classes import with_classes
from attention_transfer.training.setup.data.first_batches import check_first_labels, look_at_first_batches
from attention_transfer.training.setup.data.loaders import (
    DRAWN_IMAGES,
    Loaders,
    images_to_draw,
    open_loaders,
    with_pixel_range,
)
from attention_transfer.training.setup.data.numbering import number_alike
from attention_transfer.training.setup.idle_settings import (
    log_unbalanced_partners,
    refuse_idle_settings,
    warn_of_idle_settings,
)
from attention_transfer.training.setup.user_parts import UserParts

logger = logging.getLogger(__name__)


def open_data(
    config: Config, runtime: AcceleratedRuntime, parts: UserParts, point: ResumePoint, cleanup: ExitStack
) -> tuple[Config, Loaders, dict[str, Batch], ClassCounts | None, tuple[str, ...] | None]:
    """Open and check the loaders of a run, and read the classes from them.

    Args:
        config: as resumed.
        runtime: gives device and processes.
        parts: the user's own loaders.
        point: what is resumed.
        cleanup: closes our own loaders.

    Returns:
        the configuration with classes and pixel range, the loaders, the first batch of each user's loader by
        split, the images per class if known, and the class names of the data.
    """
    refuse_idle_settings(config, parts, begins=point.checkpoint is None)
    loaders = open_loaders(config, runtime, parts.train_loader, parts.val_loader, parts.test_loader)
    cleanup.callback(loaders.close)
    check_can_be_measured(config, validates=loaders.val is not None)
    data_classes = classes_of(loaders.train)
    first = all_or_raise(runtime, partial(look_at_first_batches, loaders, config.class_names or ()))
    config = with_classes(resumed_classes(data_classes, point, config), loaders)
    config = with_pixel_range(config, loaders, runtime)
    number_alike(config, loaders)
    assert config.num_classes is not None
    check_first_labels(first, loaders, config.num_classes)
    names = config.class_names or numbers_as_names(config.num_classes)
    return config, loaders, first, images_per_class(loaders.by_role(), names), data_classes


def describe_data(
    config: Config,
    loaders: Loaders,
    counts: ClassCounts | None,
    parts: UserParts,
) -> None:
    """Log the classes in a table, and warn of idle settings and of imbalanced classes.

    Args:
        config: the settings.
        loaders: of the run.
        counts: images per class of each split, if known.
        parts: what the user has passed to train_at beside the settings.
    """
    warn_of_idle_settings(config, parts)
    log_unbalanced_partners(config)
    for line in class_table(counts) if counts else ():
        logger.info("%s", line)
    imbalanced = imbalance_warning(class_counts(loaders.train) or {}, config.class_names or ())
    if imbalanced is not None:
        logger.warning("%s", imbalanced)


def check_images(
    loaders: Loaders,
    first: Mapping[str, Batch],
    student: nn.Module,
    teacher: nn.Module | None,
    runtime: AcceleratedRuntime,
    config: Config,
) -> Tensor | None:
    """Check that the networks can take the first images of each loader.

    Args:
        loaders: of the run.
        first: the first batch of each user's loader, by split.
        student: on the device.
        teacher: likewise, or None.
        runtime: gives the device.
        config: uses the teacher's preprocessing.

    Returns:
        the validation images to draw attention on, [B, C, H, W]; None without validation.
    """
    drawn = images_to_draw(loaders.val, first.get("val"))
    of_train = first["train"].images if "train" in first else None
    for split, some in (("train", of_train), ("val", drawn)):
        if some is not None and len(some):
            images = some.to(runtime.device)
            seen = images if teacher is None else preprocessing_of(teacher, config, images)(images)
            check_first_images(student, teacher, images, seen, ours=split not in first)
    return drawn


def images_of(loaders: Loaders, first: Mapping[str, Batch], drawn: Tensor | None) -> Tensor | None:
    """Some images [B, C, H, W] of a run: of validation, else of training; None where none can be had without a batch.

    Args:
        loaders: of the run.
        first: the first batch of each user's loader, by split.
        drawn: the validation images to draw attention on, or None.
    """
    if drawn is not None and len(drawn):
        return drawn
    if "train" in first:
        return first["train"].images[:DRAWN_IMAGES]
    dataset = own_dataset(loaders.train)
    return None if dataset is None else dataset.whole(range(min(DRAWN_IMAGES, len(dataset))))
