"""Files are whole or absent: the order of the system calls, and writers that are killed at each of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.errors import WriteError
from attention_transfer.files import _draft, check_writable, disk_space, greatest_file, remove_drafts, write_atomically

WORKER = Path(__file__).parents[2] / "support" / "workers" / "write_worker.py"
CASES = [
    "write before", "write amidst", "write after", "fsync file before", "fsync file after", "replace before",
    "replace after", "fsync folder before", "fsync folder after",
]  # fmt: skip
IS_NEW = CASES[CASES.index("replace after") :]


def work(task, folder, before=()):
    done = subprocess.run(
        [*before, sys.executable, str(WORKER), task, str(folder)],
        cwd=WORKER.parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def can_strace(tmp_path):
    command = ["strace", "-o", str(tmp_path / "probe"), "true"]
    return shutil.which("strace") and subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_kernel_sees_write_fsync_rename_and_fsync_of_the_folder_in_this_order(tmp_path):
    if not can_strace(tmp_path):
        pytest.skip("strace is not here, or may not trace; the order is tested by wrapped functions alone")
    calls = "write,fsync,fdatasync,rename,renameat,renameat2"
    folder = tmp_path / "new"
    work("steps", folder, before=["strace", "-f", "-y", "-e", f"trace={calls}", "-o", str(tmp_path / "trace")])
    lines = [line for line in (tmp_path / "trace").read_text().splitlines() if str(tmp_path) in line]
    draft = rf"\S*{re.escape(str(folder))}/\.m\.pth\.[0-9a-f]+\.at-draft"
    patterns = [
        rf'write\(\d+<{draft}>, "one"',
        rf'write\(\d+<{draft}>, "two"',
        rf"fsync\(\d+<{draft}>\) += 0",
        rf'rename\w*\(.*"{draft}".*"{re.escape(str(folder))}/m\.pth".* = 0',
        rf"fsync\(\d+<{re.escape(str(folder))}>\) += 0",
    ]
    made, *rest = lines
    # the folder was new, so that its own name is brought to the disk first
    assert re.search(rf"fsync\(\d+<{re.escape(str(tmp_path))}>\) += 0", made), lines
    assert len(rest) == len(patterns), lines
    for line, pattern in zip(rest, patterns, strict=True):
        assert re.search(pattern, line), (line, pattern)


def test_the_functions_of_os_are_called_in_this_order(tmp_path):
    assert work("steps", tmp_path) == ["write", "write", "fsync file", "replace", "fsync folder"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    return folder, work("kill", folder)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.parametrize("case", CASES)
def test_a_writer_that_is_killed_leaves_the_old_checkpoint_or_the_new_one(case, killed):
    folder, signals = killed
    assert signals[case] == signal.SIGKILL
    path = folder / case / "m.pth"
    content = read_checkpoint(path)
    epoch = 2 if case in IS_NEW else 1
    assert content["epoch"] == epoch
    assert content["model_state_dict"]["weight"].unique().tolist() == [epoch]

    drafts = [file for file in path.parent.iterdir() if file != path]
    assert len(drafts) == (0 if case in IS_NEW else 1)
    write_checkpoint(path, {**content, "epoch": 3})
    assert [file.name for file in path.parent.iterdir()] == ["m.pth"]
    assert read_checkpoint(path)["epoch"] == 3


def test_drafts_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    others = [".mine", ".m.pth.at-draft", ".m.pth.0123abcd.draft", "m.pth.0123abcd.at-draft"]
    for name in [*others, ".m.pth.0123abcd.at-draft", ".n.json.4567cdef.at-draft"]:
        (tmp_path / name).touch()
    with _draft(tmp_path / "m.pth") as being_written:
        remove_drafts(tmp_path, "m.pth")
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {*others, ".n.json.4567cdef.at-draft", Path(being_written.name).name}
        remove_drafts(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*others, Path(being_written.name).name}
    remove_drafts(tmp_path / "nowhere")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_processes_that_write_the_same_file_do_not_disturb_each_other(tmp_path):
    writers = []
    for number in range(1, 4):
        child = os.fork()
        if not child:
            try:
                for _ in range(40):
                    write_atomically(tmp_path / "f", bytes([number]) * 50_000, setting="save_dir")
                os._exit(0)
            except BaseException:
                os._exit(1)
        writers.append(child)
    assert [os.waitpid(child, 0)[1] for child in writers] == [0, 0, 0]
    content = (tmp_path / "f").read_bytes()
    assert len(content) == 50_000
    assert len(set(content)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.skipif(os.name == "nt", reason="there is no umask on this system")
def test_a_file_is_readable_for_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "f", b"x", setting="save_dir")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640


def test_an_error_leaves_no_draft_and_says_what_and_where(tmp_path):
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a file").touch()
    for path, reason in [
        (tmp_path / "a folder", "a folder of this name; move it away"),
        (tmp_path / "a file" / "f", "a file is no folder; move it away"),
        (tmp_path / ("long" * 60 + ".pth"), "name is too long.*experiment_name"),
    ]:
        with pytest.raises(WriteError, match=rf"(?i)needs 1,234 bytes, but .*({reason}).*set log_dir") as raised:
            write_atomically(path, bytes(1234), setting="log_dir")
        assert str(path) in str(raised.value)
    with pytest.raises(WriteError, match="needs 10 bytes"):
        check_writable(tmp_path / "a file" / "f", 10, "log_dir")
    check_writable(tmp_path / "f", 10, "log_dir")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file", "a folder"]


def test_room_is_asked_of_the_nearest_folder_that_exists(tmp_path):
    room = disk_space(tmp_path / "not" / "yet")
    assert room.free is not None
    assert abs(room.free - shutil.disk_usage(tmp_path).free) < 1e9
    assert greatest_file() is None or greatest_file() > 0
