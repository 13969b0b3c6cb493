"""Listing folders, without hidden files and those of operating systems."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}


def visible_entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Files and folders, except hidden ones and those of the system (.DS_Store, ._x, Thumbs.db, __MACOSX)."""
    with os.scandir(os.fspath(folder)) as entries:
        return [entry for entry in entries if not _is_hidden(entry.name)]


def visible_folders(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders in a folder, sorted."""
    return sorted(Path(entry.path) for entry in visible_entries(folder) if entry.is_dir())


def files_below(folder: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
    """All files in a folder and in the folders below it; each folder once, even if links lead to it again."""
    return _files_below(os.fspath(folder), set())


def _files_below(folder: str, seen: set[str]) -> Iterator[os.DirEntry[str]]:
    seen.add(os.path.realpath(folder))
    for entry in visible_entries(folder):
        if not entry.is_dir():
            yield entry
        # A link may point to a folder above itself, and a walk that does not track visited folders would never end.
        elif os.path.realpath(entry.path) not in seen:
            yield from _files_below(entry.path, seen)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES
