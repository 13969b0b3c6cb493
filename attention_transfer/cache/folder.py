"""The folder of all that is kept: where it is, what lies in it, how large it may grow."""

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
"""What the trials of number formats came to."""
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
        path: where it is.
        kind: pixels, maps or logits.
        size: bytes on disk.
        used: when it was last used, in seconds since 1970.
        about: what it holds, in words and numbers.
        identity: the fingerprint of what it holds.
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
    """The files of records in a cache folder, what was used longest ago first."""
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
    """Files in a cache folder that are named like files of records and are none, or damaged."""
    named = {path for suffix in (PIXELS, MAPS, LOGITS) for path in folder.glob(f"[!.]*{suffix}")}
    return sorted(named - {entry.path for entry in _entries(folder)})


def remove(entry: Entry) -> None:
    """Remove a file of records and its lock."""
    entry.path.unlink(missing_ok=True)
    entry.path.with_suffix(entry.path.suffix + ".lock").unlink(missing_ok=True)


def evict(folder: Path, needed: int, limit: float) -> None:
    """Remove what was used longest ago until `needed` more bytes stay below `limit` gigabytes.

    What a living process has open stays.

    Raises:
        CacheError: `needed` alone is above the limit.
    """
    if needed > limit * GIGABYTE:
        raise CacheError(
            f"{needed / GIGABYTE:.1f} GB are to be kept in {folder}, but cache_limit is {limit:g} GB; raise it, or "
            "switch the cache off."
        )
    kept = entries(folder)
    total = sum(entry.size for entry in kept) + needed
    for entry in kept:
        if total <= limit * GIGABYTE:
            return
        try:
            if is_in_use(entry.path):
                continue
            remove(entry)
        except OSError:
            continue  # another run was faster, or has it open
        total -= entry.size
        logger.info("%s (%.0f MB) was used longest ago and is removed: cache_limit", entry.path.name, entry.size / 1e6)


def network_file_system(folder: Path) -> str | None:
    """The type of the folder's file system where that is shared over a network, else None.

    Memory maps and locks of several machines do not agree there, and records could tear.
    """
    place = os.path.realpath(folder)
    mounts = [part for part in psutil.disk_partitions(all=True) if _lies_in(place, part.mountpoint)]
    if not mounts:
        return None
    kind: str = max(mounts, key=lambda part: len(part.mountpoint)).fstype.lower()
    return kind if kind.removeprefix("fuse.") in _NETWORK_FILE_SYSTEMS else None


def _lies_in(place: str, mountpoint: str) -> bool:
    return place == mountpoint or place.startswith(os.path.join(mountpoint, ""))
