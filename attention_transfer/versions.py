"""Versions of the installed libraries."""

from __future__ import annotations

import importlib.metadata
from functools import cache


@cache
def version(library: str) -> str:
    """The version of an installed library, read from its metadata once in a process.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    return importlib.metadata.version(library)
