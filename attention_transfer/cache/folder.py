"""The cache folder: its path, its entries, its size limit and eviction."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from attention_transfer.cache.in_use import is_in_use
from attention_transfer.cache.records import read_header
from attention_transfer.errors import CacheError

logger = logging.getLogger(__name__)

PIXELS, MAPS, LOGITS = ".pixels", ".maps", ".logits"
PRECISION_FILE = "precision.json"
"""The file with the measured choice of precision."""
GIGABYTE = 10**9

_NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "afpfs", "beegfs", "blobfuse", "blobfuse2", "ceph", "ceph-fuse", "cifs", "davfs", "gcsfuse",
    "glusterfs", "goofys", "gpfs", "juicefs", "lustre", "mount-s3", "mountpoint-s3", "ncpfs", "nfs", "nfs4", "rclone",
    "s3fs", "smb3", "smbfs", "sshfs", "webdav", "wekafs",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A file of records in the cache folder.

    Attributes:
        path: of the file.
        kind: pixels, maps or logits.
        size: bytes on disk.
        used: when it was last used, in seconds since 1970.
        about: a description of its content.
        identity: the cache key of its content.
    """

    path: Path
    kind: str
    size: int
    used: float
    about: dict[str, Any]
    identity: str


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder that the setting names, else attention-transfer/ in the user's cache folder ($XDG_CACHE_HOME)."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "attention-transfer"


def entries(folder: Path) -> list[Entry]:
    """The files of records in a cache folder, least recently used first."""
    return sorted(_entries(folder), key=lambda entry: entry.used)


def _entries(folder: Path) -> Iterator[Entry]:
    for suffix in (PIXELS, MAPS, LOGITS):
        for path in folder.glob(f"[!.]*{suffix}"):
            try:
                header, status = read_header(path), path.stat()
            except (CacheError, OSError) as error:
                logger.warning("%s", error)
                continue
            yield Entry(path, suffix[1:], status.st_size, status.st_mtime, header["about"], header["identity"])


def unreadable(folder: Path) -> list[Path]:
    """Files in a cache folder that are named like files of records but are not, or are damaged."""
    named = {path for suffix in (PIXELS, MAPS, LOGITS) for path in folder.glob(f"[!.]*{suffix}")}
    return sorted(named - {entry.path for entry in _entries(folder)})


def remove(entry: Entry) -> None:
    """Remove a file of records and its lock."""
    entry.path.unlink(missing_ok=True)
    entry.path.with_suffix(entry.path.suffix + ".lock").unlink(missing_ok=True)


def evict(folder: Path, needed: int, limit: float) -> None:
    """Remove the least recently used entries until `needed` more bytes stay below `limit` gigabytes.

    Entries that a running process has open stay.

    Args:
        folder: of the cache.
        needed: bytes of the new entry.
        limit: gigabytes that the folder may hold.

    Raises:
        CacheError: `needed` alone is above the limit.
    """
    if needed > limit * GIGABYTE:
        raise CacheError(
            f"{needed / GIGABYTE:.1f} GB are to be cached in {folder}, but cache_limit is {limit:g} GB; raise it, or "
            "switch the cache off."
        )
    stored = entries(folder)
    total = sum(entry.size for entry in stored) + needed
    for entry in stored:
        if total <= limit * GIGABYTE:
            return
        try:
            if is_in_use(entry.path):
                continue
            remove(entry)
        except OSError:
            continue  # another run removed it first, or has it open
        total -= entry.size
        logger.info("%s (%.0f MB) was used longest ago and is removed: cache_limit", entry.path.name, entry.size / 1e6)


def network_file_system(folder: Path) -> str | None:
    """The type of the folder's file system if it is shared over a network, else None.

    Memory maps and locks of several machines are not coherent there, so that records could be torn.
    """
    place = os.path.realpath(folder)
    mounts = [part for part in psutil.disk_partitions(all=True) if _lies_in(place, part.mountpoint)]
    if not mounts:
        return None
    kind: str = max(mounts, key=lambda part: len(part.mountpoint)).fstype.lower()
    return kind if kind.removeprefix("fuse.") in _NETWORK_FILE_SYSTEMS else None


def _lies_in(place: str, mountpoint: str) -> bool:
    return place == mountpoint or place.startswith(os.path.join(mountpoint, ""))
