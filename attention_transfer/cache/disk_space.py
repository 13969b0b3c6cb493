"""Checking that a new entry fits in the cache folder."""

from __future__ import annotations

from pathlib import Path

from attention_transfer.cache.folder import evict, network_file_system
from attention_transfer.errors import CacheError
from attention_transfer.files import disk_space


def check_disk_space(folder: Path, needed: int, limit: float, *, spares_disk: bool) -> None:
    """Check that a new entry fits in the cache folder, and evict others to make room for it.

    Args:
        folder: of the cache.
        needed: bytes of the entry; with 0 nothing is checked.
        limit: gigabytes that the folder may hold.
        spares_disk: refuse an entry larger than half of the free disk space.

    Raises:
        CacheError: the entry cannot be stored; the message says why, and what to do.
    """
    if not needed:
        return
    network = network_file_system(folder)
    if network is not None:
        raise CacheError(
            f"{folder} is on a network file system ({network}), where shared memory maps may tear; set cache_dir to a "
            "local disk."
        )
    free = disk_space(folder).free
    if spares_disk and free is not None and needed > free / 2:
        raise CacheError(
            f"{needed / 1e6:,.0f} MB are needed, more than half of the {free / 1e6:,.0f} MB that are free in {folder}; "
            "make room, or set cache_dir to another disk."
        )
    evict(folder, needed, limit)
