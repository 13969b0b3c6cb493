"""The decoded images of a data set in one file, which all workers and later runs share."""

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
    """Pictures by position, as they were decoded once; a damaged one is absent, and all are when `records` is closed.

    Args:
        records: a row for each picture; sent to a worker, they are opened there by their path.
    """

    def __init__(self, records: Records) -> None:
        self.records = records

    def picture(self, index: int) -> Picture | None:
        """The picture; None where it is absent or damaged."""
        if self.records.is_closed:
            return None
        content = self.records.read(index)
        if content is None:
            return None
        height, width = content[:_SHAPE_BYTES].view(np.uint32).tolist()
        return content[_SHAPE_BYTES:].reshape(height, width, 3)

    def repair(self, index: int, picture: Picture) -> None:
        """Put a picture back that was damaged, where that is possible."""
        if self.records.is_closed or not self.records.is_writable:
            return
        if self.records.size_of(index) == _SHAPE_BYTES + picture.size:
            self.keep([index], [picture])

    def keep(self, indices: Sequence[int], pictures: Sequence[Picture]) -> None:
        """Put pictures in where they are absent."""
        self.records.write(indices, map(_as_bytes, pictures))


def _as_bytes(picture: Picture) -> Bytes:
    shape = np.array(picture.shape[:2], np.uint32).view(np.uint8)
    return np.concatenate([shape, picture.reshape(-1)])


def pixels_identity(data_digest: str, decoder: Decoder) -> str:
    """The fingerprint of the pictures of a data set."""
    content = {"format": FORMAT, "data": data_digest, **decoder.identity()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def store_path(folder: Path, identity: str) -> Path:
    """Where the pictures with this fingerprint are kept."""
    return folder / f"{identity[:20]}{PIXELS}"


def picture_sizes(source: Source, decoder: Decoder) -> npt.NDArray[np.int64]:
    """Bytes that each picture takes up in a store; of images whose shape matters, the headers are read.

    Raises:
        DataError: a file cannot be read as an image.
    """
    if decoder.shorter_side is None:
        shapes: list[tuple[int, int]] = [(decoder.image_size, decoder.image_size)] * len(source)
    else:
        bar = progress_bar(range(len(source)), desc="measuring images", unit="image")
        shapes = [decoder.shape_of(source.open(index)) for index in bar]
    return _SHAPE_BYTES + 3 * np.array([height * width for height, width in shapes], np.int64)


def fill_store(
    store: PixelStore, source: Source, decoder: Decoder, num_workers: int, rank: int = 0, world_size: int = 1
) -> int:
    """Decode what is absent, under a progress bar and in `num_workers` processes, or as many as there are cores.

    A call that is cut off has lost nothing but the pictures in hand; the next one goes on. Of several ranks each
    decodes its share.

    Returns:
        the number of images that were decoded.

    Raises:
        DataError: a file cannot be read as an image.
    """
    # By the number itself: what other ranks have decoded by now must not shift the shares.
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
    """A data set of side effects: asking for some images puts them into the store."""

    def __init__(self, store: PixelStore, source: Source, decoder: Decoder) -> None:
        self.store, self.source, self.decoder = store, source, decoder

    def __getitems__(self, indices: list[int]) -> tuple[int, list[str]]:
        """Decode some images; how many they are, and what there is to say of them."""
        warnings: list[str] = []
        pictures = [self.decoder(self.source.open(index), warnings.append) for index in indices]
        kept = list(self._those_that_fit(indices, pictures))
        self.store.keep([index for index, _ in kept], [picture for _, picture in kept])
        return len(indices), warnings

    def _those_that_fit(self, indices: list[int], pictures: list[Picture]) -> Iterator[tuple[int, Picture]]:
        for index, picture in zip(indices, pictures, strict=True):
            if _SHAPE_BYTES + picture.size == self.store.records.size_of(index):
                yield index, picture
            else:
                name = self.source.identity(index)
                logger.warning("%s has another size than its header says; it is decoded each time", name)
