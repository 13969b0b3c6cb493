"""Pixel cache: the decoded pictures of a run's data sets, cached where settings and disk allow it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from attention_transfer.cache.disk_space import check_disk_space
from attention_transfer.cache.folder import cache_folder
from attention_transfer.cache.records import Records, file_size
from attention_transfer.config import Config
from attention_transfer.data.dataset import ImageDataset
from attention_transfer.data.loading.workers import explain_lost_workers
from attention_transfer.data.pixel_store import PixelStore, fill_store, picture_sizes, pixels_identity, store_path
from attention_transfer.errors import CacheError

logger = logging.getLogger(__name__)

_COMPARED = 8


def make_stores(datasets: Sequence[ImageDataset], config: Config) -> list[Records] | None:
    """Open or create the files for the pictures of these data sets, to be closed; None: they are decoded each time.

    One process of a machine calls this, before the others call `open_stores`.

    Raises:
        CacheError: pixel_cache is 'on', and the cache cannot be written.
        DataError: a file cannot be read as an image.
    """
    if config.pixel_cache == "off":
        return None
    try:
        return _make_stores(datasets, config)
    except OSError as error:
        if config.pixel_cache == "on":
            raise
        logger.info("each image is decoded in every epoch: %s", error)
        return None


def _make_stores(datasets: Sequence[ImageDataset], config: Config) -> list[Records]:
    folder = cache_folder(config.cache_dir)
    with ExitStack() as opened:
        # Open files are not evicted to make room, so the existing ones are opened first.
        stores = {dataset: _closed_by(opened, open_store(dataset, config)) for dataset in datasets}
        missing = [dataset for dataset, store in stores.items() if store is None]
        sizes = {dataset: picture_sizes(dataset.source, dataset.decoder) for dataset in missing}
        needed = sum(file_size(of_each) for of_each in sizes.values())
        check_disk_space(folder, needed, config.cache_limit, spares_disk=config.pixel_cache == "auto")
        for dataset, of_each in sizes.items():
            about = {"data": config.data_dir, "images": len(dataset), "image size": config.image_size}
            path, identity = _store_location(dataset, config)
            stores[dataset] = opened.enter_context(Records.create(path, identity, of_each, **about))
        made = [_without_stale(store, dataset) for dataset, store in stores.items() if store is not None]
        opened.pop_all()
    return made


def _closed_by(opened: ExitStack, store: Records | None) -> Records | None:
    return None if store is None else opened.enter_context(store)


def open_stores(datasets: Sequence[ImageDataset], config: Config) -> list[Records] | None:
    """Open the files that another process of this machine created, to be closed; None if one does not exist."""
    if config.pixel_cache == "off":
        return None
    with ExitStack() as opened:
        stores = [_closed_by(opened, open_store(dataset, config)) for dataset in datasets]
        found = [records for records in stores if records is not None]
        if len(found) < len(stores):
            return None
        opened.pop_all()
    return found


def open_store(dataset: ImageDataset, config: Config) -> Records | None:
    """The file for the pictures of a data set, to be closed; None if it does not exist."""
    path, identity = _store_location(dataset, config)
    if not path.exists():
        return None
    with ExitStack() as opened:
        records = opened.enter_context(Records(path, identity))
        records.touch()
        opened.pop_all()
    return records


def _store_location(dataset: ImageDataset, config: Config) -> tuple[Path, str]:
    identity = pixels_identity(dataset.digest(hash_files=config.hash_files), dataset.decoder)
    return store_path(cache_folder(config.cache_dir), identity), identity


def _without_stale(records: Records, dataset: ImageDataset) -> Records:
    """Clear the records if some pictures differ from their files, although sizes and times are the same."""
    store, present = PixelStore(records), np.flatnonzero(records.present())
    for index in present[:: max(1, len(present) // _COMPARED)][:_COMPARED].tolist():
        cached = store.picture(index)
        if cached is None or np.array_equal(cached, dataset.decode(index)):
            continue
        if not records.is_writable:
            raise CacheError(f"{records.path} holds pixels of other images, and must not be written to; remove it.")
        logger.warning("%s holds pixels of other images of equal size and time, and is filled anew", records.path.name)
        records.clear()
        break
    return records


@explain_lost_workers()
def cache_pixels(
    datasets: Sequence[ImageDataset], stores: Sequence[Records], config: Config, rank: int = 0, world_size: int = 1
) -> None:
    """Decode the pictures that are not cached yet, and make the data sets read from the cache.

    Args:
        datasets: of the run.
        stores: a file for each, closed by the caller; from then on the images are decoded each time.
        config: num_workers and cache_dir are used.
        rank: of this process among those of its machine, which share the work.
        world_size: the number of these processes.

    Raises:
        DataError: a file cannot be read as an image.
    """
    decoded, size = 0, 0
    for dataset, records in zip(datasets, stores, strict=True):
        store = PixelStore(records)
        decoded += fill_store(store, dataset.source, dataset.decoder, config.num_workers, rank, world_size)
        size += records.path.stat().st_size
        dataset.store = store
    was_there = "" if decoded else ", as an earlier run left them"
    logger.info("pixels are read from %s (%.0f MB%s)", cache_folder(config.cache_dir), size / 1e6, was_there)
