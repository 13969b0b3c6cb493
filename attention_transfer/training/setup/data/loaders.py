"""The loaders of a run: the user's, or ours over data_dir."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from attention_transfer.cache.records import Records
from attention_transfer.config import Config
from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.loaders import (
    close_loader,
    image_settings,
    own_dataset,
    own_sampler,
    prepare_dataloaders,
)
from attention_transfer.data.loading.user_loaders import check_loader
from attention_transfer.data.pixel_cache import cache_pixels, make_stores, open_stores
from attention_transfer.data.sources.unlabelled import WithUnlabelled
from attention_transfer.data.views import Augmentation
from attention_transfer.distributed import Runtime, all_or_raise
from attention_transfer.errors import ConfigError, DataError
from attention_transfer.training.checkpointing.state import NO_IMAGES

logger = logging.getLogger(__name__)

DRAWN_IMAGES = 4


Loader = Iterable[Any]


@dataclass
class Loaders:
    """The loaders of a run.

    Attributes:
        own: the loaders that this library opened.
        idle: the user's loaders whose workers are not running yet.
        stores: open pixel caches of `own`.
    """

    train: Loader
    val: Loader | None
    test: Loader | None
    own: list[DataLoader[Any]]
    idle: list[DataLoader[Any]] = field(default_factory=list)
    stores: list[Records] = field(default_factory=list)

    def close(self) -> None:
        """End the workers that the run has started, and close its pixel caches.

        All loaders can still be iterated: new workers start, and each image is decoded again.
        """
        with ExitStack() as closing:
            for records in self.stores:
                closing.callback(records.close)
            for loader in self.own:
                dataset = own_dataset(loader)
                if dataset is not None:
                    dataset.store = None
            for loader in (*self.own, *self.idle):
                closing.callback(close_loader, loader)

    def splits(self) -> dict[str, int | None]:
        """The number of images of each split; None for a loader of unknown length."""
        return {role: _samples(loader) for role, loader in self.by_role().items()}

    def by_role(self) -> dict[str, Loader]:
        """The loaders that are present, by the name of their split."""
        roles = {"train": self.train, "val": self.val, "test": self.test}
        return {role: loader for role, loader in roles.items() if loader is not None}


def _samples(loader: Loader) -> int | None:
    dataset = own_dataset(loader)
    if dataset is not None:
        return dataset.num_labelled
    try:
        return len(loader.dataset)  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        return None


def batches_of(loader: Loader) -> int | None:
    """Batches per epoch; None for a loader of unknown length."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def open_loaders(
    config: Config, runtime: Runtime, train: Loader | None, val: Loader | None, test: Loader | None
) -> Loaders:
    """The user's loaders, and ours over data_dir for those that are missing.

    With a user's train loader, data_dir is not read.

    Args:
        config: the settings of our own loaders.
        runtime: gives the processes.
        train: the user's loader, or None.
        val: likewise.
        test: likewise.

    Raises:
        DataError: a loader that cannot be iterated every epoch, or a malformed data folder.
    """
    user_loaders = {"train_loader": train, "val_loader": val, "test_loader": test}
    for role, loader in user_loaders.items():
        if loader is not None:
            check_loader(loader, role)
    if train is not None:
        _check_sampler(config, train)
        if val is None:
            logger.info("there is no val_loader: the last epoch counts as the best")
        return Loaders(train, val, test, own=[], idle=_idle(user_loaders.values()))
    is_on_gpu = runtime.device.type == "cuda"
    own = open_folder(config, runtime.rank, runtime.world_size, pin_memory=is_on_gpu)
    if "test" in own and not len(own["test"]):
        # the folder has no test labels, which was logged
        del own["test"]
    given = {role: loader for role, loader in (("val", val), ("test", test)) if loader is not None}
    return Loaders(
        own["train"],
        given.get("val", own["val"]),
        given.get("test", own.get("test")),
        own=[loader for role, loader in own.items() if role not in given],
        idle=_idle(user_loaders.values()),
    )


def _check_sampler(config: Config, train: Loader) -> None:
    """Refuse the balanced sampler for a loader that has a sampler of its own.

    Raises:
        ConfigError: names the remedy.
    """
    sampler = own_sampler(train)
    if config.sampler == "balanced" and not (sampler is not None and sampler.is_balanced):
        raise ConfigError(
            "sampler is 'balanced', but train_loader has a sampler of its own; make the loader with "
            "prepare_dataloaders(..., sampler='balanced'), or with torch's WeightedRandomSampler and leave sampler out."
        )


def _idle(user_loaders: Iterable[Loader | None]) -> list[DataLoader[Any]]:
    """The DataLoaders whose persistent workers, if any, are not started yet."""
    return [loader for loader in user_loaders if isinstance(loader, DataLoader) and loader._iterator is None]


def open_folder(
    config: Config, rank: int = 0, world_size: int = 1, *, pin_memory: bool | None = None
) -> dict[str, DataLoader[Any]]:
    """Our loaders over data_dir, by the name of their split.

    Args:
        config: the settings of the loaders.
        rank: of this process.
        world_size: the number of processes.
        pin_memory: page-locked batches; None: if there is a CUDA GPU.
    """
    loaders = prepare_dataloaders(
        config.data_dir,
        **image_settings(config),
        augment=config.augment,
        seed=config.seed,
        split_seed=config.split_seed,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        augmentation=augmentation_of(config),
        mask_rotation=config.mask_rotation,
        unlabelled_dir=config.unlabelled_dir,
        unlabelled_ratio=config.unlabelled_ratio,
        augment_views=config.augment_views,
        augment_seed=config.augment_seed,
        rank=rank,
        world_size=world_size,
        pin_memory=pin_memory,
        sampler=config.sampler,
    )
    named = zip(("train", "val", "test"), loaders, strict=True)
    return {role: loader for role, loader in named if loader is not None}


def data_digests(loaders: Loaders) -> tuple[str | None, str]:
    """Hashes of the training images' names and sizes: of those with labels, and of those without.

    Returns:
        the first, None for a loader of the user's; and the second, 'none' where there are no such images.
    """
    dataset = own_dataset(loaders.train)
    if dataset is None:
        return None, NO_IMAGES
    if isinstance(dataset.source, WithUnlabelled):
        return dataset.source.labelled.fingerprint("size"), dataset.source.unlabelled.fingerprint("size")
    return dataset.source.fingerprint("size"), NO_IMAGES


def augmentation_of(config: Config) -> Augmentation:
    """How far the views of a run differ from the whole images, if it augments them."""
    parts = config.augmentation
    given = {"crop_scale": config.crop_scale, "rotation": config.rotation, "color_jitter": config.color_jitter}
    none = {"crop_scale": (1.0, 1.0), "rotation": 0.0, "color_jitter": 0.0}
    by_part: dict[str, Any] = given if "default" in parts else none
    return Augmentation(
        flip=config.flip,
        pad_crop="pad_crop" in parts,
        erasing="erasing" in parts,
        trivial="trivial" in parts,
        mixup=config.mixup,
        cutmix=config.cutmix,
        **by_part,
    )


def with_pixel_range(config: Config, loaders: Loaders, runtime: Runtime) -> Config:
    """The configuration with pixel_range='auto' resolved; all processes must call this.

    If no image of data_dir has more than 8 bits, 'auto' stays.

    Args:
        config: the settings.
        loaders: of the run, whose data sets have found the range.
        runtime: gives the processes.

    Raises:
        DataError: the processes have found different ranges.
    """
    datasets = [dataset for loader in loaders.own if (dataset := own_dataset(loader)) is not None]
    ranges = runtime.all_gather_object(datasets[0].decoder.pixel_range if datasets else None)
    if len(set(ranges)) > 1:
        raise DataError(
            f"pixel_range 'auto' resolves to {' and '.join(map(str, sorted(set(ranges), key=str)))} in processes of "
            f"one run, so that {config.data_dir!r} does not hold the same files for all; copy it again, or set "
            "pixel_range."
        )
    return config if ranges[0] is None else config.model_copy(update={"pixel_range": ranges[0]})


def cache_pixels_of(loaders: Loaders, config: Config, runtime: Runtime) -> None:
    """Open the pixel caches of our own loaders and decode the images that they lack; all processes must call this.

    `loaders.close()` closes the caches.

    Args:
        loaders: of the run; stores are added.
        config: uses pixel_cache, cache_dir, cache_limit, hash_files and num_workers.
        runtime: gives the processes.

    Raises:
        CacheError: pixel_cache is 'on', and the pixels cannot be cached.
        DataError: a file cannot be read as an image.
    """
    datasets = [dataset for loader in loaders.own if (dataset := own_dataset(loader)) is not None]
    if not datasets:
        return

    def make() -> None:
        if runtime.is_local_main:
            loaders.stores += make_stores(datasets, config) or []

    all_or_raise(runtime, make)
    if not runtime.is_local_main:
        loaders.stores += open_stores(datasets, config) or []

    def fill() -> None:
        if loaders.stores:
            cache_pixels(datasets, loaders.stores, config, runtime.local_rank, runtime.local_world_size)

    all_or_raise(runtime, fill)


def images_to_draw(loader: Loader | None, first: Batch | None) -> Tensor | None:
    """A few fixed validation images [B, C, H, W] to draw attention on; None without validation.

    Args:
        loader: the validation loader, or None.
        first: its first batch, for a loader that is not ours.
    """
    dataset = own_dataset(loader)
    if dataset is not None:
        step = max(1, len(dataset) // DRAWN_IMAGES)
        return torch.stack([dataset[i][0] for i in range(0, len(dataset), step)][:DRAWN_IMAGES])
    return None if first is None else first.images[:DRAWN_IMAGES].clone()  # not a view that keeps the batch
