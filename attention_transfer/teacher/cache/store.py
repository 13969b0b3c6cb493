"""A teacher's outputs on disk: one record for each sample and view, whole or absent.

The maps are at(x) sqrt(HW), of all the teacher's stages at their own resolution: 1 on average, so that float16 holds
eleven bits of every cell that matters (at(x) itself would be subnormal on large maps). Logits are float32 in a file
of their own: a later run that distils adds them and reuses the maps.
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
from attention_transfer.features.maps import INPUT_GRADIENT, SUM_OF_SQUARES, MapFunction
from attention_transfer.features.signals import LOGITS as LOGITS_SIGNAL
from attention_transfer.features.signals import Signal, TeacherOutput, map_signal
from attention_transfer.modules import handed_over

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[Any]
_NUMBER_BYTES = 4


@dataclass(frozen=True)
class OutputShape:
    """The shapes and types of a teacher's outputs for one image.

    Attributes:
        maps: (h, w) of each stage's map, by each map function in turn.
        stages: how many of them each map function makes.
        logits: number of classes, or None where logits are not needed.
        map_precision: 'fp16' or 'fp32'.
        functions: the map functions.
    """

    maps: tuple[tuple[int, int], ...]
    logits: int | None
    map_precision: str = "fp16"
    functions: tuple[MapFunction, ...] = (SUM_OF_SQUARES,)
    stages: tuple[int, ...] | None = None

    @classmethod
    def of(cls, output: TeacherOutput, functions: Sequence[MapFunction], map_precision: str) -> OutputShape:
        """The shape of a teacher's outputs, from one of them.

        Args:
            output: with maps [B, h, w] by each function, and logits [B, K] or none.
            functions: the map functions.
            map_precision: 'fp16' or 'fp32'.
        """
        maps = [output.maps(function) for function in functions]
        sizes = tuple((stage.shape[1], stage.shape[2]) for stages in maps for stage in stages)
        classes = None if output.logits is None else output.logits.shape[1]
        return cls(sizes, classes, map_precision, tuple(functions), tuple(map(len, maps)))

    @property
    def depends_on_label(self) -> bool:
        """Whether the maps of an image depend on its label."""
        return any(function.of == INPUT_GRADIENT for function in self.functions)

    @property
    def map_type(self) -> type[np.floating[Any]]:
        """The dtype in which maps are stored."""
        return np.float16 if self.map_precision == "fp16" else np.float32

    @property
    def map_bytes(self) -> int:
        """Bytes of all maps of an image."""
        return sum(h * w for h, w in self.maps) * np.dtype(self.map_type).itemsize

    def maps_of(self, output: TeacherOutput) -> list[Tensor]:
        """The maps [B, h, w] of a teacher's output in the order of a row: by function, then shallow to deep."""
        return [stage for function in self.functions for stage in output.maps(function)]

    def output(
        self, maps: Sequence[Tensor], logits: Tensor | None, coverage: Sequence[Tensor] | None = None
    ) -> TeacherOutput:
        """A teacher's output with these maps and logits.

        Args:
            maps: [B, h, w] each, in the order of `maps_of`.
            logits: [B, K], or None.
            coverage: [B, h, w] of each of the maps; None: known everywhere.
        """
        output, first = TeacherOutput(), 0
        for function, count in zip(self.functions, self._counts(len(maps)), strict=True):
            part = slice(first, first + count)
            if count:
                output[function.signal] = map_signal(function, maps[part], None if coverage is None else coverage[part])
            first += count
        if logits is not None:
            output[LOGITS_SIGNAL] = Signal(logits)
        return output

    def _counts(self, maps: int) -> tuple[int, ...]:
        return self.stages or (maps // max(1, len(self.functions)),) * len(self.functions)

    def encode_maps(self, maps: Sequence[Tensor]) -> Floats:
        """Normalised maps [B, h, w] of each stage as rows [B, cells] in the stored dtype."""
        rows: Floats = self._scaled(maps).cpu().numpy().astype(self.map_type)
        return rows

    def decode_maps(self, rows: Floats, device: torch.device) -> tuple[Tensor, ...]:
        """Normalised maps [B, h, w], float32, of each stage, from rows [B, cells]."""
        return self._split(handed_over(torch.from_numpy(rows), device).float())

    def rounded_maps(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Normalised maps [B, h, w], float32, of each stage, rounded on their device as if they had been stored."""
        rows = self._scaled(maps)
        if rows.dtype != torch.float32:
            # NumPy rounds float64 to float16 once, PyTorch by way of float32
            return self.decode_maps(self.encode_maps(maps), rows.device)
        return self._split(rows.half().float() if self.map_precision == "fp16" else rows)

    def _scaled(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.cat([stage.flatten(1) * math.sqrt(stage[0].numel()) for stage in maps], dim=1)

    def _split(self, numbers: Tensor) -> tuple[Tensor, ...]:
        stages = torch.split(numbers, [h * w for h, w in self.maps], dim=1)
        return tuple((stage / math.sqrt(h * w)).view(-1, h, w) for stage, (h, w) in zip(stages, self.maps, strict=True))


class TeacherCache:
    """A cache of one teacher's outputs for one data set, to be closed.

    Args:
        maps: a file of records.
        logits: another; None where logits are not needed.
        shape: of the outputs for one image.
    """

    def __init__(self, maps: Records, logits: Records | None, shape: OutputShape) -> None:
        self.maps = maps
        self.logits = logits
        self.shape = shape

    @classmethod
    def open(
        cls, folder: Path, identity: str, rows: int, shape: OutputShape, about: dict[str, Any] | None = None
    ) -> TeacherCache:
        """The cache with this key: as earlier runs left it, else empty.

        Args:
            folder: the cache folder.
            identity: the cache key; see `cache_identity`.
            rows: number of records.
            shape: of the outputs for one image.
            about: a description for people, stored in new files.

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
        """Close the files; a second call does nothing."""
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
        """Whether new outputs can be stored."""
        return self.maps.is_writable and (self.logits is None or self.logits.is_writable)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(records.path.stat().st_size for records in self._files())

    def present(self) -> npt.NDArray[np.bool_]:
        """Which rows are stored: bool [rows]."""
        present: npt.NDArray[np.bool_] = np.logical_and.reduce([records.present() for records in self._files()])
        return present

    def read(self, rows: Rows) -> tuple[Floats, Floats | None, npt.NDArray[np.bool_]]:
        """Maps [n, cells] and logits [n, K] of some rows [n], and which of them are stored and intact, bool [n]."""
        maps, found = self.maps.read_equal(rows, self.shape.map_type)
        if self.logits is None:
            return maps, None, found
        logits, logits_found = self.logits.read_equal(rows, np.float32)
        return maps, logits, found & logits_found

    def keep(self, rows: Rows, maps: Floats, logits: Floats | None) -> None:
        """Store outputs where they are absent or damaged; intact rows stay as they are.

        Args:
            rows: [n].
            maps: [n, cells], as from `OutputShape.encode_maps`.
            logits: [n, K], float32; None where there are none.
        """
        indices = rows.tolist()
        self.maps.write(indices, maps.view(np.uint8))
        if self.logits is not None and logits is not None:
            self.logits.write(indices, logits.view(np.uint8))

    def clear(self) -> None:
        """Make every row absent."""
        for records in self._files():
            records.clear()

    def _files(self) -> list[Records]:
        return [self.maps] if self.logits is None else [self.maps, self.logits]


def cache_paths(folder: Path, identity: str) -> tuple[Path, Path]:
    """The files of the maps and of the logits with this cache key."""
    return folder / f"{identity[:20]}{MAPS}", folder / f"{identity[:20]}{LOGITS}"


def cache_size(rows: int, shape: OutputShape) -> int:
    """Bytes that a cache takes up on disk."""
    size = file_size(np.full(rows, shape.map_bytes, np.int64))
    if shape.logits is not None:
        size += file_size(np.full(rows, _NUMBER_BYTES * shape.logits, np.int64))
    return size
