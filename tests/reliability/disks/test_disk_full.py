"""Disks that are full, read-only, forbidden or without inodes: real ones, small, mounted for a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_disks import may_mount, mounted, needs_mount

pytestmark = pytest.mark.slow

WRITER = Path(__file__).parents[2] / "support" / "workers" / "write_worker.py"
TRAINER = Path(__file__).parents[2] / "support" / "workers" / "full_disk_worker.py"


def run(command, shell_before=""):
    """What a worker prints as JSON, in a namespace of mounts of its own where there is something to mount."""
    if shell_before:
        script = f'set -e; {shell_before}; exec "$@"'
        command = ["unshare", "-Urm", "sh", "-c", script, "sh", *command]
    done = subprocess.run(
        command, cwd=WRITER.parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write(folder, shell_before="", before=()):
    return run([*before, sys.executable, str(WRITER), "refused", str(folder)], shell_before)


def unprivileged():
    """What takes the right to write anywhere from root, who has it even where a folder says no."""
    if os.geteuid() != 0:
        return []
    if not may_mount():
        pytest.skip("this is root, and `unshare` is not allowed here: nothing is forbidden")
    return ["unshare", "-U"]


@needs_mount
@pytest.mark.parametrize(
    ("options", "then", "reason"),
    [
        ("size=64k", "", r"has [\d,]+ bytes free; make room there"),
        ("size=1m,nr_inodes=3", "touch '{disk}/x'", r"has no inodes left for a new file; remove files there"),
        ("size=1m", "mount -o remount,ro '{disk}'", r"is read-only; have it mounted for writing"),
    ],
    ids=["full", "no inodes", "read-only"],
)
def test_the_sentence_names_path_bytes_and_reason_and_the_file_of_before_stays(tmp_path, options, then, reason):
    before = f"printf before > '{tmp_path}/m.pth'"
    told = write(tmp_path, mounted(tmp_path, options, "; ".join(filter(None, [before, then.format(disk=tmp_path)]))))
    path = re.escape(str(tmp_path / "m.pth"))
    assert re.search(rf"^{path} needs 100,000 bytes, but .*{reason}, or set save_dir", told["sentence"])
    assert told["sentence"].endswith("m.pth is still the one from before.")
    assert told["files"].pop("m.pth") == len("before")
    assert set(told["files"]) <= {"x"}


def test_a_folder_that_this_user_may_not_write_to_is_named(tmp_path):
    before = unprivileged()
    (tmp_path / "m.pth").write_text("before")
    tmp_path.chmod(0o555)
    try:
        told = write(tmp_path, before=before)
    finally:
        tmp_path.chmod(0o755)
    assert f"needs 100,000 bytes, but this user may not write to {tmp_path}" in told["sentence"]
    assert told["files"] == {"m.pth": len("before")}


DISKS = {
    "small": "size=1m",
    "no inodes": "size=20m,nr_inodes=7",
    "read-only": "size=20m",
    "filled": "size=20m",
    "filled with logs": "size=20m",
}
LIMITS = ["limited", "limited meanwhile"]


def train(disks, scenarios, few_digits, shell_before="", before=()):
    settings = {
        "model": "CifarResNet-8", "data_dir": str(few_digits), "image_size": 16, "num_workers": 0, "device": "cpu",
        "epochs": 3, "save_freq": 1, "experiment_name": "run", "cache_dir": str(disks / "cache"), "precision": "fp32",
        "figure_freq": 0,
    }  # fmt: skip
    words = [str(TRAINER), str(disks), json.dumps(scenarios), json.dumps(settings)]
    return run([*before, sys.executable, *words], shell_before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, few_digits):
    """Where the disks were, and what train_at said on each; one process for all, for importing torch takes seconds."""
    disks = tmp_path_factory.mktemp("disks")
    if not may_mount():
        return disks, train(disks, LIMITS, few_digits)
    for name in DISKS:
        (disks / name).mkdir()
    mounts = [mounted(disks / name, options) for name, options in DISKS.items()]
    mounts.append(f"mount -o remount,ro '{disks}/read-only'")
    return disks, train(disks, [*DISKS, *LIMITS], few_digits, "; ".join(mounts))


def is_refused(told, *words):
    assert told["result"]["type"] == "WriteError", told
    for word in words:
        assert re.search(word, told["result"]["sentence"]), told
    return True


@needs_mount
def test_a_disk_with_too_little_room_is_told_of_before_training(runs):
    disks, told = runs
    where = f"save_dir is '{disks}/small/checkpoints'"
    assert is_refused(told["small"], where, r"needs \d,\d{3},\d{3} bytes", r"\d bytes free")
    assert told["small"]["files"] == {}


@needs_mount
def test_a_disk_without_inodes_is_told_of_before_training(runs):
    disks, told = runs
    assert is_refused(told["no inodes"], f"save_dir is '{disks}/no inodes/checkpoints'", r"new files, .* inodes left")
    assert told["no inodes"]["files"] == {}


@needs_mount
def test_a_read_only_disk_is_told_of_before_training(runs):
    disks, told = runs
    where = f"{disks}/read-only/checkpoints"
    assert is_refused(told["read-only"], where, r"needs \d[\d,]+ bytes", "read-only; have it mounted")


def test_a_forbidden_folder_is_told_of_before_training(tmp_path, few_digits):
    before = unprivileged()
    (tmp_path / "forbidden").mkdir(mode=0o555)
    told = train(tmp_path, ["forbidden"], few_digits, before=before)["forbidden"]
    where = f"{tmp_path}/forbidden/checkpoints"
    assert is_refused(told, where, r"needs \d[\d,]+ bytes", "may not write", "set save_dir")


def test_a_limit_of_the_size_of_files_is_told_of_before_training(runs):
    disks, told = runs
    where = f"save_dir is '{disks}/limited/checkpoints'"
    assert is_refused(told["limited"], where, "100,000 bytes here", "ulimit -f")
    assert told["limited"]["files"] == {}


def is_intact_after_one_epoch(told):
    assert told["files"] == {"run_best.pth": 1, "run_epoch_1.pth": 1, "run_last.pth": 1}
    assert told["resumed"] == "finished"
    return True


@needs_mount
def test_a_disk_that_fills_up_meanwhile_ends_the_run_with_the_last_checkpoint_intact(runs):
    disks, told = runs
    path = rf"{disks}/filled/checkpoints/run_last\.pth"
    assert is_refused(told["filled"], rf"{path} needs [\d,]+ bytes", r"\d bytes free", "from before")
    assert is_intact_after_one_epoch(told["filled"])


@needs_mount
def test_logs_on_the_disk_that_fills_up_do_not_hide_the_reason(runs):
    disks, told = runs
    told = told["filled with logs"]
    # TensorBoard's file may be the first for which there is no room
    assert is_refused(told, f"^{disks}/filled with logs/(checkpoints/run_last|logs/run/events)", "make room there")
    assert is_intact_after_one_epoch(told)


def test_a_limit_that_comes_meanwhile_ends_the_run_with_the_last_checkpoint_intact(runs):
    disks, told = runs
    told = told["limited meanwhile"]
    assert is_refused(told, f"^{disks}/(limited meanwhile/checkpoints/run_last|logs/limited meanwhile/run/events)")
    assert is_refused(told, "100,000 bytes here", "ulimit -f")
    assert is_intact_after_one_epoch(told)
