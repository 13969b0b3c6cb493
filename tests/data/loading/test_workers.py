"""Processes that load images: who ends them, and what happens when one is killed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from support.programs import BEFORE_IT_HANGS, all_end, end
from support.runs import bring, tensors
from torch.utils.data import DataLoader, Dataset

from attention_transfer import DataError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.data.loading.workers import explain_lost_workers, prepare_worker

pytestmark = [pytest.mark.usefixtures("ctrl_c_counts"), pytest.mark.speed, pytest.mark.slow]

LOADER = """
import os, signal, sys, time
import torch
from torch.utils.data import DataLoader
from attention_transfer.data.loading.loaders import close_loader
from attention_transfer.data.loading.workers import prepare_worker, explain_lost_workers
from attention_transfer.training.signals import SignalHandler

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 10_000
    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.zeros(3)

# so long does torch wait for a worker before it terminates it
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 500

loader = DataLoader(Slow(), 2, num_workers=2, worker_init_fn=prepare_worker, persistent_workers=True)
batches = iter(loader)
for _ in range(2):
    next(batches)  # one of each worker, which is then prepared
print(*(worker.pid for worker in batches._workers), flush=True)
"""


def test_a_worker_that_is_killed_ends_the_run_with_the_last_checkpoint_intact(settings, tmp_path):
    student, killed = create_model("CifarResNet-8", 10), []
    before = {child.pid for child in psutil.Process().children()}  # of other tests

    def kill_a_worker(module, arguments, output):
        last = tmp_path / "checkpoints" / "run_last.pth"
        if module.training and last.exists() and not killed:
            # forked from this process, unlike multiprocessing's own helpers
            forked = [child for child in psutil.Process().children() if child.cmdline() == psutil.Process().cmdline()]
            os.kill(next(child.pid for child in forked if child.pid not in before), signal.SIGKILL)
            killed.append(True)

    student.register_forward_hook(kill_a_worker)
    with pytest.raises(DataError, match=r"a process that loads images is gone .*num_workers"):
        train_at({**settings, "num_workers": 2, "epochs": 200, "batch_size": 8}, student=student)
    assert read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["epoch"] >= 1


class Remote(Dataset):
    """Images from elsewhere, of which the sixth cannot be fetched."""

    def __init__(self, error):
        self.images, self.labels = tensors()
        self.error = error

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == 5 and self.error is not None:
            raise self.error
        return self.images[index], int(self.labels[index])


@pytest.fixture
def quickly_closed(monkeypatch):
    """Torch gives workers that have raised five seconds each to end, when their loader is collected."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("error", [ConnectionResetError("s3 closed"), EOFError("Compressed file ended")])
def test_an_error_of_the_users_own_data_goes_through_as_it_is(settings, error, num_workers, quickly_closed):
    loader = DataLoader(Remote(error), 4, num_workers=num_workers)
    with pytest.raises(type(error), match=str(error)) as raised:
        train_at({**bring(settings), "num_classes": 4}, loader)
    assert not isinstance(raised.value, DataError)
    assert "want of memory" not in str(raised.value)


def test_an_error_of_a_loader_that_is_no_torch_loader_goes_through_as_it_is(settings):
    class Stream:
        def __iter__(self):
            yield tensors()
            raise ConnectionResetError("s3 closed")

    with pytest.raises(ConnectionResetError, match=r"^s3 closed$"):
        train_at({**bring(settings), "num_classes": 4}, Stream())


class OnItsWay:
    """A batch whose worker is killed while the main process receives it."""

    def __init__(self, batch):
        self.worker = os.getpid()

    def __reduce__(self):
        return _lose, (self.worker,)


def _lose(worker):
    os.kill(worker, signal.SIGKILL)
    raise ConnectionResetError(104, "Connection reset by peer")


def test_a_connection_that_breaks_because_a_worker_died_is_told_as_that():
    loader = DataLoader(Remote(None), 4, num_workers=2, collate_fn=OnItsWay)
    lost = r"a process that loads images is gone \(DataLoader worker \(pid.*num_workers"
    with pytest.raises(DataError, match=lost), explain_lost_workers():
        next(iter(loader))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_the_workers_at_work_until_the_run_ends_them(start, number):
    process, workers = start(
        LOADER
        + "with SignalHandler() as request:\n"
        + "    print('listening', flush=True)\n"
        + "    while request.signal is None:\n        next(batches)\n"
        + "    for _ in range(40):\n        next(batches)\n"
        + "print('finished', flush=True)\n"
        + "del batches\nclose_loader(loader)\nprint('closed', flush=True)\n"
    )
    assert process.stdout.readline() == "listening\n"
    os.killpg(process.pid, number)
    printed, said = end(process)  # long before torch would give up waiting for them
    assert (printed, process.returncode) == (["finished", "closed"], 0), said
    assert all_end(map(int, workers))


def test_a_worker_that_is_killed_ends_the_run_with_the_remedy_and_not_in_a_hang(start):
    process, workers = start(LOADER + "with explain_lost_workers():\n    for batch in batches:\n        pass\n")
    os.kill(int(workers[0]), signal.SIGKILL)
    _, said = end(process)
    assert process.returncode == 1
    assert "DataError: a process that loads images is gone (DataLoader worker (pid" in said
    assert "is killed by signal: Killed), most often for want of memory; lower num_workers" in said
    assert all_end(map(int, workers))


def test_workers_end_when_their_process_is_killed(start):
    process, workers = start(LOADER.replace("= 500", "= 1") + "time.sleep(1000)\n")
    process.kill()
    process.wait()
    assert all_end(map(int, workers))


def test_a_program_that_ends_beside_open_loaders_does_not_wait_for_their_workers():
    """In a fresh interpreter, for it is about its end."""
    program = LOADER + "other = iter(DataLoader(Slow(), 2, num_workers=1, worker_init_fn=prepare_worker))\n"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=BEFORE_IT_HANGS, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert all_end(map(int, done.stdout.split()))


class Asleep(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        time.sleep(1000)


def is_pending(number, pid):
    told = re.search(r"^ShdPnd:\s+([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), flags=re.MULTILINE)
    return bool(int(told[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker that does not answer ends as torch has it")
def test_a_worker_that_does_not_answer_ends_when_its_parent_terminates_it_and_at_nobody_elses_word():
    is_prepared = multiprocessing.Event()

    def prepare(worker_id):
        prepare_worker(worker_id)
        is_prepared.set()

    batches = iter(DataLoader(Asleep(), num_workers=1, worker_init_fn=prepare, multiprocessing_context="fork"))
    (worker,) = batches._workers
    assert is_prepared.wait(BEFORE_IT_HANGS)
    subprocess.run(["bash", "-c", f"kill -TERM {worker.pid}"], check=True)
    # two signals that are pending at a time are one: the parent's must not be taken for the one before
    deadline = time.monotonic() + BEFORE_IT_HANGS
    while is_pending(signal.SIGTERM, worker.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(BEFORE_IT_HANGS)
    assert worker.exitcode == 0
