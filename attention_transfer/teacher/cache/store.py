"""A teacher's answers on disk: one record for each sample and view, whole or absent.

The maps are at(x) sqrt(HW), of all the teacher's stages at their own resolution: 1 on average, so that float16 keeps
eleven bits of every cell that matters (at(x) itself would be subnormal on large maps). Logits are float32 in a file
of their own: a later run that distils adds them and keeps the maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attention_transfer.cache.folder import LOGITS, MAPS
from attention_transfer.cache.records import Records, file_size
from attention_transfer.features.maps import SUM_OF_SQUARES, MapFunction
from attention_transfer.features.signals import LOGITS as LOGITS_SIGNAL
from attention_transfer.features.signals import Signal, TeacherOutput

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[Any]
_NUMBER_BYTES = 4


@dataclass(frozen=True)
class OutputShape:
    """What a teacher's answer to one image looks like.

    Attributes:
        maps: (h, w) of each stage's map, by each map function in turn.
        logits: number of classes, or None where nobody asks for logits.
        map_precision: 'fp16' or 'fp32'.
        functions: the map functions.
    """

    maps: tuple[tuple[int, int], ...]
    logits: int | None
    map_precision: str = "fp16"
    functions: tuple[MapFunction, ...] = (SUM_OF_SQUARES,)

    @property
    def map_type(self) -> type[np.floating[Any]]:
        """How the numbers of a map are kept."""
        return np.float16 if self.map_precision == "fp16" else np.float32

    @property
    def map_bytes(self) -> int:
        """Bytes of all maps of an image."""
        return sum(h * w for h, w in self.maps) * np.dtype(self.map_type).itemsize

    def maps_of(self, output: TeacherOutput) -> list[Tensor]:
        """The maps [B, h, w] of a teacher's output as they stand in a row: those of each function, shallow to deep."""
        return [stage for function in self.functions for stage in output.maps(function)]

    def output(
        self, maps: Sequence[Tensor], logits: Tensor | None, coverage: Sequence[Tensor] | None = None
    ) -> TeacherOutput:
        """A teacher's output of the maps of a row.

        Args:
            maps: as `maps_of` has them.
            logits: [B, K], or None.
            coverage: of each of the maps; None: known everywhere.
        """
        output = TeacherOutput()
        stages = len(maps) // max(1, len(self.functions))
        for i, function in enumerate(self.functions if stages else ()):
            part = slice(i * stages, (i + 1) * stages)
            output[function.signal] = Signal(tuple(maps[part]), None if coverage is None else tuple(coverage[part]))
        if logits is not None:
            output[LOGITS_SIGNAL] = Signal(logits)
        return output

    def encode_maps(self, maps: Sequence[Tensor]) -> Floats:
        """Normalised maps [B, h, w] of each stage as rows [B, cells] of numbers as they are kept."""
        scaled = [stage.flatten(1) * math.sqrt(stage[0].numel()) for stage in maps]
        rows: Floats = torch.cat(scaled, dim=1).cpu().numpy().astype(self.map_type)
        return rows

    def decode_maps(self, rows: Floats, device: torch.device) -> tuple[Tensor, ...]:
        """Rows [B, cells] as normalised maps [B, h, w], float32, of each stage."""
        numbers = torch.from_numpy(rows).to(device, non_blocking=True).float()
        stages = torch.split(numbers, [h * w for h, w in self.maps], dim=1)
        return tuple((stage / math.sqrt(h * w)).view(-1, h, w) for stage, (h, w) in zip(stages, self.maps, strict=True))


class TeacherCache:
    """The answers of one teacher to one data set, to be closed.

    Args:
        maps: a file of records.
        logits: another; None where nobody asks for logits.
        shape: of an answer.
    """

    def __init__(self, maps: Records, logits: Records | None, shape: OutputShape) -> None:
        self.maps = maps
        self.logits = logits
        self.shape = shape

    @classmethod
    def open(
        cls, folder: Path, identity: str, rows: int, shape: OutputShape, about: dict[str, Any] | None = None
    ) -> TeacherCache:
        """The memory with this fingerprint: as earlier runs left it, else empty.

        Raises:
            CacheError: there is no room on the disk, the folder cannot be written to, or a file in it is damaged.
        """
        maps_path, logits_path = cache_paths(folder, identity)
        with ExitStack() as opened:
            sizes = np.full(rows, shape.map_bytes, np.int64)
            maps = opened.enter_context(Records.create(maps_path, identity, sizes, **(about or {})))
            logits = None
            if shape.logits is not None:
                sizes = np.full(rows, _NUMBER_BYTES * shape.logits, np.int64)
                logits = opened.enter_context(Records.create(logits_path, identity, sizes, **(about or {})))
            cache = cls(maps, logits, shape)
            for records in cache._files():
                records.touch()
            opened.pop_all()
        return cache

    def close(self) -> None:
        """Let go of the files; a second time nothing happens."""
        for records in self._files():
            records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def is_writable(self) -> bool:
        """Whether new answers can be put in."""
        return self.maps.is_writable and (self.logits is None or self.logits.is_writable)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(records.path.stat().st_size for records in self._files())

    def present(self) -> npt.NDArray[np.bool_]:
        """Which rows have been answered."""
        present: npt.NDArray[np.bool_] = np.logical_and.reduce([records.present() for records in self._files()])
        return present

    def read(self, rows: Rows) -> tuple[Floats, Floats | None, npt.NDArray[np.bool_]]:
        """Maps [n, cells] and logits [n, K] of some rows, and which of them are there and whole."""
        maps, found = read_rows(self.maps, rows, self.shape.map_type)
        if self.logits is None:
            return maps, None, found
        logits, logits_found = read_rows(self.logits, rows, np.float32)
        return maps, logits, found & logits_found

    def keep(self, rows: Rows, maps: Floats, logits: Floats | None) -> None:
        """Put answers in where they are absent; what is there stays."""
        indices = rows.tolist()
        self.maps.write(indices, maps.view(np.uint8))
        if self.logits is not None and logits is not None:
            self.logits.write(indices, logits.view(np.uint8))

    def clear(self) -> None:
        """Forget everything."""
        for records in self._files():
            records.clear()

    def _files(self) -> list[Records]:
        return [self.maps] if self.logits is None else [self.maps, self.logits]


def cache_paths(folder: Path, identity: str) -> tuple[Path, Path]:
    """Where the maps and the logits with this fingerprint are kept."""
    return folder / f"{identity[:20]}{MAPS}", folder / f"{identity[:20]}{LOGITS}"


def cache_size(rows: int, shape: OutputShape) -> int:
    """Bytes that a memory takes up on disk."""
    size = file_size(np.full(rows, shape.map_bytes, np.int64))
    if shape.logits is not None:
        size += file_size(np.full(rows, _NUMBER_BYTES * shape.logits, np.int64))
    return size


def read_rows(records: Records, rows: Rows, kind: npt.DTypeLike) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Some rows [n, numbers] of equal size, and which of them are there and whole."""
    size = records.size_of(0)
    contents, found = np.zeros((len(rows), size), np.uint8), np.zeros(len(rows), np.bool_)
    for i, row in enumerate(rows.tolist()):
        content = records.read(row)
        if content is not None:
            contents[i], found[i] = content, True
    return contents.view(kind), found
