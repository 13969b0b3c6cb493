"""Pixel store: the decoded images of a data set in one file, shared by all workers and later runs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from attention_transfer.cache.folder import PIXELS
from attention_transfer.cache.records import Bytes, Records
from attention_transfer.data.decoding.decoder import PIXELS as PIXEL_WARNINGS
from attention_transfer.data.decoding.decoder import Decoder, Picture
from attention_transfer.data.decoding.once import warn_once
from attention_transfer.data.loading.cores import available_cores
from attention_transfer.data.loading.workers import one_pass, prepare_worker
from attention_transfer.data.sources.base import Source
from attention_transfer.progress import progress_bar

logger = logging.getLogger(__name__)

FORMAT = "pixels 2"
_CHUNK = 32
_SHAPE_BYTES = 8

T = TypeVar("T")


class PixelStore:
    """Decoded pictures by position; a damaged one counts as absent, and so do all once `records` is closed.

    Args:
        records: a row for each picture; reopened by their path in a worker.
    """

    def __init__(self, records: Records) -> None:
        self.records = records

    def picture(self, index: int) -> Picture | None:
        """The picture, uint8 [H, W, 3]; None where it is absent or damaged."""
        if self.records.is_closed:
            return None
        content = self.records.read(index)
        if content is None:
            return None
        height, width = content[:_SHAPE_BYTES].view(np.uint32).tolist()
        return content[_SHAPE_BYTES:].reshape(height, width, 3)

    def repair(self, index: int, picture: Picture) -> None:
        """Store a picture [H, W, 3] again that was absent or damaged, if the file is writable and the size fits."""
        if self.records.is_closed or not self.records.is_writable:
            return
        if self.records.size_of(index) == _SHAPE_BYTES + picture.size:
            self.keep([index], [picture])

    def keep(self, indices: Sequence[int], pictures: Sequence[Picture]) -> None:
        """Store pictures [H, W, 3] where they are absent or damaged."""
        self.records.write(indices, map(_as_bytes, pictures))


def _as_bytes(picture: Picture) -> Bytes:
    shape = np.array(picture.shape[:2], np.uint32).view(np.uint8)
    return np.concatenate([shape, picture.reshape(-1)])


def pixels_identity(data_digest: str, decoder: Decoder) -> str:
    """The cache key of the pictures of a data set."""
    content = {"format": FORMAT, "data": data_digest, **decoder.identity()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def store_path(folder: Path, identity: str) -> Path:
    """The file of the pictures with this cache key."""
    return folder / f"{identity[:20]}{PIXELS}"


def picture_sizes(source: Source, decoder: Decoder) -> npt.NDArray[np.int64]:
    """Bytes of each picture in a store; where they are of sizes of their own, the headers of the files are read.

    Raises:
        DataError: a file cannot be read as an image.
    """
    if decoder.fixed_shape is not None:
        shapes: list[tuple[int, int]] = [decoder.fixed_shape] * len(source)
    else:
        bar = progress_bar(range(len(source)), desc="measuring images", unit="image")
        shapes = [decoder.shape_of(source.open(index)) for index in bar]
    return _SHAPE_BYTES + 3 * np.array([height * width for height, width in shapes], np.int64)


def fill_store(
    store: PixelStore, source: Source, decoder: Decoder, num_workers: int, rank: int = 0, world_size: int = 1
) -> int:
    """Decode and store the absent pictures, under a progress bar.

    An interrupted call loses only the pictures being decoded; the next one continues. Of several ranks each decodes
    its share.

    Args:
        store: to be filled.
        source: of the images.
        decoder: makes the pictures.
        num_workers: number of processes, at most as many as there are cores.
        rank: of this process.
        world_size: number of processes that call this for the store.

    Returns:
        the number of images that were decoded.

    Raises:
        DataError: a file cannot be read as an image.
    """
    # By row number, so that the shares do not depend on what other ranks have decoded by now.
    absent = [row for row in np.flatnonzero(~store.records.present()).tolist() if row % world_size == rank]
    if not absent or not store.records.is_writable:
        return 0
    workers = min(num_workers, available_cores(), len(absent) // _CHUNK)
    chunks: DataLoader[tuple[int, list[str]]] = DataLoader(
        _Decoding(store, source, decoder),
        batch_sampler=[absent[first : first + _CHUNK] for first in range(0, len(absent), _CHUNK)],
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=prepare_worker,
        # A DataLoader without a generator of its own draws its workers' seed from torch's global one.
        generator=torch.Generator(),
    )
    with progress_bar(total=len(absent), desc="decoding images", unit="image") as bar:
        for count, warnings in one_pass(chunks):
            bar.update(count)
            for sentence in warnings:
                warn_once(PIXEL_WARNINGS, sentence)
    return len(absent)


def _as_it_is(result: T) -> T:
    return result


class _Decoding(Dataset[tuple[int, list[str]]]):
    """A data set used for its side effect: fetching images stores their pictures."""

    def __init__(self, store: PixelStore, source: Source, decoder: Decoder) -> None:
        self.store, self.source, self.decoder = store, source, decoder

    def __getitems__(self, indices: list[int]) -> tuple[int, list[str]]:
        """Decode and store some images; returns their number and the warnings about them."""
        warnings: list[str] = []
        pictures = [self.decoder(self.source.open(index), warnings.append) for index in indices]
        fitting = list(self._those_that_fit(indices, pictures))
        self.store.keep([index for index, _ in fitting], [picture for _, picture in fitting])
        return len(indices), warnings

    def _those_that_fit(self, indices: list[int], pictures: list[Picture]) -> Iterator[tuple[int, Picture]]:
        for index, picture in zip(indices, pictures, strict=True):
            if _SHAPE_BYTES + picture.size == self.store.records.size_of(index):
                yield index, picture
            else:
                name = self.source.identity(index)
                logger.warning("%s has another size than its header says; it is decoded each time", name)
