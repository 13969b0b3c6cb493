"""Whether the pixels of a run's data sets are kept, and keeping them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from attention_transfer.cache.folder import cache_folder, free_bytes, make_room, network_file_system
from attention_transfer.cache.records import Records, file_size
from attention_transfer.config import Config
from attention_transfer.data.dataset import ImageDataset
from attention_transfer.data.identity import samples_digest
from attention_transfer.data.pixels import PixelStore, fill_store, picture_sizes, pixels_identity, store_path
from attention_transfer.errors import CacheError

logger = logging.getLogger(__name__)


class PixelPlan(NamedTuple):
    """Where the pictures of a data set are to be kept.

    Attributes:
        path: of the store.
        identity: its fingerprint.
        sizes: bytes of each picture; None where the store is there already.
    """

    path: Path
    identity: str
    sizes: npt.NDArray[np.int64] | None


def plan_pixels(datasets: Sequence[ImageDataset], config: Config) -> list[PixelPlan] | None:
    """Decide whether to keep the pictures of these data sets; None: they are decoded each time.

    Raises:
        CacheError: pixel_cache is 'on', and they cannot be kept.
        DataError: a file cannot be read as an image.
    """
    if config.pixel_cache == "off":
        return None
    folder = cache_folder(config.cache_dir)
    plans = [_plan(dataset, folder, hash_files=config.hash_files) for dataset in datasets]
    try:
        _make_sure_that_they_fit(plans, folder, config)
    except CacheError as error:
        if config.pixel_cache == "on":
            raise
        logger.info("each image is decoded in every epoch: %s", error)
        return None
    return plans


def _plan(dataset: ImageDataset, folder: Path, *, hash_files: bool) -> PixelPlan:
    identity = pixels_identity(samples_digest(dataset.samples, hash_files=hash_files), dataset.decoder)
    path = store_path(folder, identity)
    return PixelPlan(path, identity, None if path.exists() else picture_sizes(dataset.samples, dataset.decoder))


def _make_sure_that_they_fit(plans: Sequence[PixelPlan], folder: Path, config: Config) -> None:
    needed = sum(file_size(plan.sizes) for plan in plans if plan.sizes is not None)
    if not needed:
        return
    network = network_file_system(folder)
    if network is not None:
        raise CacheError(
            f"{folder} is on a network file system ({network}), where shared memory maps may tear; set cache_dir to a "
            "local disk."
        )
    free = free_bytes(folder)
    if config.pixel_cache == "auto" and needed > free / 2:
        raise CacheError(
            f"their pixels take {needed / 1e6:,.0f} MB, more than half of the {free / 1e6:,.0f} MB that are free in "
            f"{folder}; make room, or set cache_dir to another disk."
        )
    make_room(folder, needed, config.cache_limit)


def keep_pixels(
    datasets: Sequence[ImageDataset], plans: Sequence[PixelPlan], config: Config, rank: int = 0, world_size: int = 1
) -> None:
    """Decode what is not yet kept, and let the data sets read it from there.

    Raises:
        CacheError: a store cannot be made or is damaged.
        DataError: a file cannot be read as an image.
    """
    decoded, size = 0, 0
    for dataset, plan in zip(datasets, plans, strict=True):
        store = PixelStore(_open(plan, dataset, config))
        decoded += fill_store(store, dataset.samples, dataset.decoder, config.num_workers, rank, world_size)
        size += plan.path.stat().st_size
        dataset.store = store
    was_there = "" if decoded else ", as an earlier run left them"
    logger.info("pixels are read from %s (%.0f MB%s)", cache_folder(config.cache_dir), size / 1e6, was_there)


def _open(plan: PixelPlan, dataset: ImageDataset, config: Config) -> Records:
    if plan.sizes is None:
        records = Records(plan.path, plan.identity)
    else:
        about = {"data": config.data_dir, "images": len(dataset), "image size": config.image_size}
        records = Records.create(plan.path, plan.identity, plan.sizes, **about)
    records.touch()
    return records
