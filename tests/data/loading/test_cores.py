"""No more processes load images than this process has cores, which is said once, and torch has nothing to warn of."""

from __future__ import annotations

import json
import math
import os

import pytest
from support import warm

from attention_transfer.data.loading.cores import available_cores, cgroup_quota

pytestmark = pytest.mark.slow

PROGRAM = """
import json, logging, os, sys, warnings
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
warnings.simplefilter("error")
from attention_transfer import prepare_dataloaders, train_at
settings = json.loads({settings!r})
loaders = prepare_dataloaders(settings["data_dir"], image_size=16)
assert [loader.num_workers for loader in loaders] == [1, 1, 1], loaders
loaders = prepare_dataloaders(settings["data_dir"], image_size=16, num_workers=0)
assert [loader.num_workers for loader in loaders] == [0, 0, 0], loaders
warnings.simplefilter("default")
train_at(settings)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system ties no process to a core")
def test_on_a_single_core_the_default_of_four_workers_is_one_said_once_and_torch_does_not_warn(settings, tmp_path):
    del settings["num_workers"]
    # enough images for the store of pixels to be filled by several workers
    settings = {**settings, "model": "CifarResNet-8", "precision": "fp32", "cache_dir": str(tmp_path / "cache")}
    done = warm.run("-c", PROGRAM.format(settings=json.dumps(settings)))
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    assert printed.count("num_workers is 4: cut to 1, the cores that this process may use") == 1
    assert "DataLoader will create" not in printed
    assert json.loads((tmp_path / "logs" / "run_summary.json").read_text())["config"]["num_workers"] == 4


def test_the_cores_are_at_most_those_of_the_affinity_and_at_least_one():
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 1 <= available_cores() <= most


def groups(tmp_path, files, own):
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    return cgroup_quota(tmp_path / "cgroup", tmp_path / "own")


@pytest.mark.parametrize(
    ("files", "own", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),  # a container of version 2
        ({"cpu.max": "max 100000\n"}, "0::/\n", math.inf),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, "0::/a/b\n", 4),  # the least of all above
        ({"a/cpu.max": "400000 100000\n", "other/cpu.max": "1000 100000\n"}, "0::/a\n", 4),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/x\n", 0.5),
        ({"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/x\n", math.inf),
        ({"cpu.max": "nonsense\n"}, "0::/\n", math.inf),
        ({}, "", math.inf),
    ],
)
def test_the_quota_of_a_container_is_read_in_both_versions_of_control_groups(tmp_path, files, own, quota):
    assert groups(tmp_path, files, own) == quota


def test_where_there_are_no_control_groups_there_is_no_quota(tmp_path):
    assert cgroup_quota(tmp_path / "nowhere", tmp_path / "nothing") == math.inf
