"""Whether the pixels of a run's data sets are kept, and keeping them."""

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
    """Open or make the files for the pictures of these data sets, to be closed; None: they are decoded each time.

    One process of a machine does this, before the others open what it made.

    Raises:
        CacheError: pixel_cache is 'on', and they cannot be kept.
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
        # What is open is not removed to make room: so what is there is opened first.
        stores = {dataset: _closed_by(opened, open_store(dataset, config)) for dataset in datasets}
        missing = [dataset for dataset, store in stores.items() if store is None]
        sizes = {dataset: picture_sizes(dataset.source, dataset.decoder) for dataset in missing}
        needed = sum(file_size(of_each) for of_each in sizes.values())
        check_disk_space(folder, needed, config.cache_limit, spares_disk=config.pixel_cache == "auto")
        for dataset, of_each in sizes.items():
            about = {"data": config.data_dir, "images": len(dataset), "image size": config.image_size}
            path, identity = _place(dataset, config)
            stores[dataset] = opened.enter_context(Records.create(path, identity, of_each, **about))
        made = [_without_stale(store, dataset) for dataset, store in stores.items() if store is not None]
        opened.pop_all()
    return made


def _closed_by(opened: ExitStack, store: Records | None) -> Records | None:
    return None if store is None else opened.enter_context(store)


def open_stores(datasets: Sequence[ImageDataset], config: Config) -> list[Records] | None:
    """Open what another process of this machine has made, to be closed; None where that made nothing."""
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
    """The file for the pictures of a data set, if it is there, to be closed."""
    path, identity = _place(dataset, config)
    if not path.exists():
        return None
    with ExitStack() as opened:
        records = opened.enter_context(Records(path, identity))
        records.touch()
        opened.pop_all()
    return records


def _place(dataset: ImageDataset, config: Config) -> tuple[Path, str]:
    identity = pixels_identity(dataset.digest(hash_files=config.hash_files), dataset.decoder)
    return store_path(cache_folder(config.cache_dir), identity), identity


def _without_stale(records: Records, dataset: ImageDataset) -> Records:
    """Forget all pictures where some are not what the files hold now, though sizes and times are the same."""
    store, known = PixelStore(records), np.flatnonzero(records.present())
    for index in known[:: max(1, len(known) // _COMPARED)][:_COMPARED].tolist():
        kept = store.picture(index)
        if kept is None or np.array_equal(kept, dataset.decode(index)):
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
    """Decode what is not yet kept, and let the data sets read it from there.

    Args:
        datasets: of the run.
        stores: a file for each; whoever opened them closes them, and the images are decoded each time from then on.
        config: num_workers and cache_dir are used.
        rank: of this process among those of its machine, which share the work.
        world_size: how many they are.

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
