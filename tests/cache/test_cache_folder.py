"""What the cache folder has room for, and what makes room in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from attention_transfer.cache.disk_space import check_disk_space
from attention_transfer.cache.folder import MAPS, entries, evict, network_file_system
from attention_transfer.cache.records import Records
from attention_transfer.errors import CacheError
from attention_transfer.files import disk_space

HOLD = """
import sys
from pathlib import Path
from types import SimpleNamespace
from attention_transfer.cache.records import Records

records = Records(Path(sys.argv[1]), sys.argv[2])
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def three(tmp_path) -> list[Path]:
    """Three files of records, the first used longest ago."""
    paths = [tmp_path / f"{name}{MAPS}" for name in ("a", "b", "c")]
    for seconds, path in enumerate(paths):
        Records.create(path, path.stem, [25_000] * 4)
        os.utime(path, (seconds, seconds))
    return paths


@pytest.fixture
def holder(three) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the first of them open."""
    command = [sys.executable, "-c", HOLD, str(three[0]), "a"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def size_of(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def test_what_another_process_has_open_makes_no_room(three, holder, tmp_path):
    limit = size_of(three) / 1e9
    evict(tmp_path, three[0].stat().st_size, limit)
    assert [path.exists() for path in three] == [True, False, True]


def test_it_makes_room_once_that_process_is_gone(three, holder, tmp_path):
    holder.kill()
    holder.wait()
    evict(tmp_path, three[0].stat().st_size, size_of(three) / 1e9)
    assert [entry.path for entry in entries(tmp_path)] == three[1:]


def test_auto_spares_half_of_the_free_disk_and_on_does_not(tmp_path):
    most = disk_space(tmp_path).free // 2
    check_disk_space(tmp_path, int(0.9 * most), limit=1e9, spares_disk=True)
    with pytest.raises(CacheError, match=r"more than half of the [0-9,]+ MB that are free"):
        check_disk_space(tmp_path, int(1.1 * most), limit=1e9, spares_disk=True)
    check_disk_space(tmp_path, int(1.1 * most), limit=1e9, spares_disk=False)


@pytest.mark.parametrize(
    ("kind", "is_network"),
    [("nfs", True), ("fuse.sshfs", True), ("fuse.gcsfuse", True), ("CIFS", True), ("ext4", False), ("fuseblk", False)],
)
def test_the_innermost_mount_tells_whether_a_folder_is_on_a_network(tmp_path, monkeypatch, kind, is_network):
    mounts = [("/", "ext4" if is_network else "nfs"), (str(tmp_path), kind)]
    partitions = [SimpleNamespace(mountpoint=place, fstype=fstype) for place, fstype in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: partitions)
    assert network_file_system(tmp_path / "not" / "yet") == (kind.lower() if is_network else None)
