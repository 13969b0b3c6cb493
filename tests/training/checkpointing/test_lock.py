"""Two runs of one name: the second is refused while the first lives, and only then."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import psutil
import pytest

from attention_transfer.errors import ConfigError, WriteError
from attention_transfer.training.checkpointing.lock import RunLock

pytestmark = pytest.mark.speed

HOLD = """
import sys, time
from attention_transfer.training.checkpointing.lock import RunLock
lock = RunLock(sys.argv[1], "birds")
print("held", flush=True)
"""

WITH_WORKERS = """
import torch
from torch.utils.data import DataLoader
from attention_transfer.data.loading.workers import prepare_worker

class Asleep(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        time.sleep(1000)

batches = iter(DataLoader(Asleep(), num_workers=2, worker_init_fn=prepare_worker))
print(*(worker.pid for worker in batches._workers), flush=True)
next(batches)
"""

CONTEND = """
import os, sys, time
from attention_transfer.errors import ConfigError
from attention_transfer.training.checkpointing.lock import RunLock
path, mark = sys.argv[1], sys.argv[1] + ".mark"
wins = 0
while wins < 200:
    try:
        lock = RunLock(path, "birds")
    except ConfigError:
        continue
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # fails where another process holds the lock too
    os.unlink(mark)
    lock.release()
    wins += 1
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoints" / ".birds.lock"


@pytest.fixture
def start(path):
    """Starts a Python program that is given the path."""
    started = []

    def begin(program):
        process = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def refused_elsewhere(path):
    """What another process is told that wants the lock; None where it gets it."""
    done = subprocess.run([sys.executable, "-c", HOLD, path], capture_output=True, text=True, check=False, timeout=300)
    return done.stderr.splitlines()[-1] if done.returncode else None


def test_a_second_run_is_told_who_lives_and_what_to_do(start, path):
    process = start(HOLD + "time.sleep(1000)")
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ConfigError) as refused:
        RunLock(path, "birds")
    assert str(refused.value) == (
        f"experiment_name is 'birds', and a run of this name is alive (process {process.pid} on host "
        f"{socket.gethostname()}): wait for it, stop it, or choose another name."
    )


def test_a_run_that_is_over_leaves_neither_the_lock_nor_its_file(path):
    lock = RunLock(path, "birds")
    assert path.exists()
    lock.release()
    lock.release()
    assert list(path.parent.iterdir()) == []
    RunLock(path, "birds").release()


def test_a_killed_run_frees_its_name_at_once_though_its_workers_live_on(start, path):
    process = start(HOLD + WITH_WORKERS)
    process.stdout.readline()
    workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        RunLock(path, "birds").release()
        assert all(worker.is_running() for worker in workers)
    finally:
        for worker in workers:
            worker.kill()


@pytest.mark.parametrize("where", ["nested", "thread", "another path"])
def test_a_second_run_in_the_same_process_is_refused_and_the_first_keeps_its_lock(path, tmp_path, where):
    lock = RunLock(path, "birds")
    told = []
    (tmp_path / "link").symlink_to(path.parent)

    def another(path=path):
        with pytest.raises(ConfigError, match=r"a run of this name is alive \(this process\)"):
            RunLock(path, "birds")
        told.append(True)

    if where == "thread":
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
    else:
        another(path if where == "nested" else tmp_path / "link" / path.name)
    assert told
    assert f"process {os.getpid()}" in refused_elsewhere(path)
    lock.release()
    assert refused_elsewhere(path) is None


def test_a_forked_process_can_neither_give_its_parents_lock_up_nor_take_it(path):
    lock = RunLock(path, "birds")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            lock.release()
            RunLock(path, "birds")
        except ConfigError as error:
            code = 0 if f"process {os.getppid()}" in str(error) else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "is alive" in refused_elsewhere(path)
    lock.release()


def test_processes_that_contend_for_a_lock_whose_file_comes_and_goes_hold_it_one_at_a_time(start, path):
    processes = [start(CONTEND) for _ in range(3)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    assert not path.exists()


def test_two_names_and_two_folders_go_side_by_side(path, tmp_path):
    locks = [RunLock(path, "birds"), RunLock(path.with_name(".ants.lock"), "ants"), RunLock(tmp_path / "l", "birds")]
    for lock in locks:
        lock.release()


def test_a_process_beside_the_main_one_holds_nothing(path):
    RunLock(path, "birds", held=False).release()
    assert not path.parent.exists()


def test_a_folder_that_cannot_be_made_is_told_with_the_setting_that_names_it(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(WriteError, match=r"set save_dir to another folder"):
        RunLock(tmp_path / "checkpoints" / ".birds.lock", "birds")
