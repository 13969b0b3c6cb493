"""A data set as a table of paths and labels, in a .csv, .tsv or .parquet file."""

from __future__ import annotations

import csv
import itertools
import logging
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention_transfer.data.sources.base import Sample
from attention_transfer.data.sources.split_names import read_split_name
from attention_transfer.errors import DataError

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".tsv", ".parquet")

_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    "label": ("label", "class", "class_name", "category", "target", "species"),
    "split": ("split", "subset", "set", "partition", "fold"),
}
"""The usual names of each column, in small letters."""

_LISTED = 5


@dataclass(frozen=True)
class Table:
    """The rows of a table that name an image.

    Attributes:
        classes: names of the classes: whole numbers in their order, other names sorted.
        samples: by the role of their split; all in 'train' where there is no column of splits.
    """

    classes: tuple[str, ...]
    samples: dict[str, list[Sample]]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row: its number in the file, the path as it is written, the label, and the role of the split."""

    number: int
    path: str
    label: str
    role: str


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a table, by its suffix."""
    return Path(path).suffix.lower() in SUFFIXES


def read_table(path: Path) -> Table:
    """The images and classes of a table.

    It has a column of paths and one of labels, and perhaps one of splits, each under one of its usual names (path,
    file, filename, image; label, class, category, target; split, subset, set). Paths are absolute, or relative to the
    table's folder; labels are names or numbers; splits go by their usual names. A row of test without a label has none.

    Args:
        path: the table.

    Raises:
        DataError: it cannot be read; a column is missing or there are two of a kind; a row has more cells than the
            header, no path, no label, or an unknown split; a file is listed twice; files are missing; two labels are
            the same number; or there are fewer than two classes.
    """
    rows = list(_rows(path))
    _refuse_twice(path, rows)
    labelled = [row for row in rows if row.label]
    classes = _in_order(path, {row.label for row in labelled if row.role == "train"})
    if len(classes) < 2:
        raise DataError(f"{path} has {len(classes)} classes in its training rows, but a classifier needs two.")
    unknown = sorted({row.label for row in labelled} - set(classes))
    if unknown:
        raise DataError(f"{path} has rows of val or test with classes that no training row has: {_listed(unknown)}.")
    _warn_of_classes(path, classes, labelled)
    numbers = {name: number for number, name in enumerate(classes)}
    samples: dict[str, list[Sample]] = {role: [] for role in dict.fromkeys(row.role for row in rows)}
    for row, sample in zip(labelled, _samples(path, labelled, numbers), strict=True):
        samples[row.role].append(sample)
    if len(labelled) < len(rows):
        logger.warning("%s rows of test in %s have no label, and are not measured", len(rows) - len(labelled), path)
    return Table(classes, {role: sorted(part, key=lambda s: (s.label, s.relative)) for role, part in samples.items()})


def _rows(path: Path) -> Iterator[_Row]:
    for number, cells in _cells(path):
        row = _Row(number, cells["path"], cells["label"], _role(path, number, cells.get("split")))
        if not row.path:
            raise DataError(f"row {number} of {path} has no path.")
        if not row.label and row.role != "test":
            raise DataError(f"row {number} of {path} ({row.path}) has no label; only rows of test may have none.")
        yield row


def _role(path: Path, number: int, split: str | None) -> str:
    if split is None:
        return "train"
    named = read_split_name(split)
    if named is None or named.role not in ("train", "val", "test"):
        raise DataError(f"row {number} of {path} has the split {split!r}; write train, val or test.")
    return named.role


def _cells(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The number of each row, and its cells that matter by the kind of their column, as text without outer spaces."""
    try:
        if path.suffix.lower() == ".parquet":
            yield from _of_parquet(path)
            return
        is_tsv = path.suffix.lower() == ".tsv"
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if is_tsv else ",", strict=True)
            names = _columns(path, reader.fieldnames or ())
            for row in reader:
                if any(row.get(None) or ()):
                    raise DataError(
                        f"row {reader.line_num} of {path} has more cells than the header; put quotes around a cell "
                        f"with a {'tab' if is_tsv else 'comma'}."
                    )
                yield reader.line_num, {kind: (row[name] or "").strip() for kind, name in names.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table ({error}).") from error


def _of_parquet(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        from pyarrow import ArrowInvalid, parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise DataError(f"{path} is read with pyarrow, which is not installed; install it, or save a .csv.") from None
    try:
        names = _columns(path, parquet.read_schema(path).names)
        rows = parquet.read_table(path, columns=list(names.values())).to_pylist()
    except ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as a table ({error}).") from error
    for number, row in enumerate(rows, start=1):
        yield number, {kind: _as_text(path, number, name, row[name]) for kind, name in names.items()}


def _as_text(path: Path, number: int, column: str, value: Any) -> str:
    """A cell of a typed column; whole floats, as integers become where one is missing, are written as integers."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str | int):
        raise DataError(
            f"row {number} of {path} has a {type(value).__name__} in its column {column}; a table has paths of files, "
            "names or whole numbers of classes, and names of splits."
        )
    return str(value).strip()


def _columns(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The name of the column of each kind."""
    found: dict[str, str] = {}
    for kind, usual in _COLUMNS.items():
        fitting = [name for name in names if name.strip().lower() in usual]
        if len(fitting) > 1:
            raise DataError(f"{path} has several columns for the {kind}: {_listed(fitting)}; leave one of them.")
        if fitting:
            found[kind] = fitting[0]
        elif kind != "split":
            raise DataError(
                f"{path} has no column for the {kind} (its columns: {_listed(names)}); name one {_listed(usual)}."
            )
    return found


def _in_order(path: Path, names: set[str]) -> tuple[str, ...]:
    if not all(name.isdecimal() for name in names):
        return tuple(sorted(names))
    ordered = sorted(names, key=lambda name: (int(name), name))
    for one, other in itertools.pairwise(ordered):
        if int(one) == int(other):
            raise DataError(f"{path} has the labels {one} and {other}, which are the same number; write them alike.")
    return tuple(ordered)


def _warn_of_classes(path: Path, classes: Sequence[str], labelled: Sequence[_Row]) -> None:
    """Log classes that differ in case alone, and those of which val or test has no image."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(name.casefold(), []).append(name)
    if doubtful := [" and ".join(names) for names in alike.values() if len(names) > 1]:
        logger.warning("%s has classes that differ in case alone: %s", path, _listed(doubtful))
    for role in dict.fromkeys(row.role for row in labelled):
        present = {row.label for row in labelled if row.role == role}
        if absent := [name for name in classes if name not in present]:
            logger.warning(
                "%s has no %s row of %d of %d classes, of which nothing is measured there: %s",
                path, role, len(absent), len(classes), _listed(absent),
            )  # fmt: skip


def _samples(path: Path, rows: Sequence[_Row], numbers: Mapping[str, int]) -> Iterator[Sample]:
    missing: list[str] = []
    found: list[Sample] = []
    for row in rows:
        file = os.path.join(path.parent, row.path)
        try:
            status = os.stat(file)  # noqa: PTH116
        except (OSError, ValueError):  # of a NUL
            missing.append(row.path)
            continue
        if not stat.S_ISREG(status.st_mode):
            missing.append(row.path)
            continue
        relative = os.path.normpath(row.path).replace(os.sep, "/")
        found.append(Sample(file, relative, numbers[row.label], status.st_size, status.st_mtime_ns))
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(rows):,} files that {path} lists are missing, or no files: "
            f"{_listed(missing)}. Paths are absolute, or relative to {path.parent}."
        )
    yield from found


def _refuse_twice(path: Path, rows: Sequence[_Row]) -> None:
    """Refuse a file that is listed twice, in whatever spelling: it could be trained on and measured."""
    first: dict[str, _Row] = {}
    for row in rows:
        before = first.setdefault(os.path.normpath(os.path.join(path.parent, row.path)), row)
        if before is not row:
            alias = "" if before.path == row.path else f" (as {before.path})"
            raise DataError(
                f"{path} lists {row.path} twice, in rows {before.number}{alias} and {row.number}; leave one."
            )


def _listed(names: Sequence[Any]) -> str:
    more = len(names) - _LISTED
    return ", ".join(map(str, names[:_LISTED])) + (f" and {more:,} more" if more > 0 else "")
