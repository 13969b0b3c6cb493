"""Asked to stop, by whatever signal: what a run notices, and what its workers do."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from attention_transfer import train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.data.workers import prepare_worker
from attention_transfer.training.stopping import ONE_REQUEST, Stopped, StopRequest

from runs import bring, tensors

RUN = """
import time
from attention_transfer.training.stopping import StopRequest
try:
    with StopRequest() as request:
        print("ready", flush=True)
        while request.signal is None:
            time.sleep(0.01)
        print(request.signal.name, flush=True)
        {then}
except KeyboardInterrupt:
    print("interrupted", flush=True)
print("over", flush=True)
"""
STAY = "time.sleep(60)"

LOADER = """
import os, signal, sys, time
import torch
from torch.utils.data import DataLoader
from attention_transfer.data.loaders import close_loader
from attention_transfer.data.workers import prepare_worker, telling_of_lost_workers
from attention_transfer.training.stopping import StopRequest

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 10_000
    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.zeros(3)

loader = DataLoader(Slow(), 2, num_workers=2, worker_init_fn=prepare_worker, persistent_workers=True)
batches = iter(loader)
next(batches)
print(*(worker.pid for worker in batches._workers), flush=True)
"""


@pytest.fixture(autouse=True)
def ctrl_c_counts():
    """A suite that runs in the background may ignore Ctrl-C, and the processes that it starts would with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start():
    """Starts a Python program in a process group of its own, and waits for the line that it prints."""
    started = []

    def begin(program):
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process, process.stdout.readline().split()

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def end(process, timeout=30):
    """What a process printed, what it said, and the seconds until its end."""
    began = time.monotonic()
    printed, said = process.communicate(timeout=timeout)
    return printed.split(), said, time.monotonic() - began


def all_end(pids, timeout):
    """Whether these processes are over within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_remembered_and_told_in_one_line(start, number):
    process, _ = start(RUN.format(then=""))
    process.send_signal(number)
    printed, said, _ = end(process)
    assert printed == [number.name, "over"]
    assert said.split("\n") == [
        "", f"{number.name}: the batch is finished and the run saved; once more stops at once", "",
    ]  # fmt: skip
    assert process.returncode == 0


def test_a_second_sigterm_ends_the_process_at_once(start):
    process, _ = start(RUN.format(then=STAY))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    time.sleep(ONE_REQUEST + 0.1)
    process.send_signal(signal.SIGTERM)
    printed, _, seconds = end(process)
    assert (printed, process.returncode) == ([], -signal.SIGTERM)
    assert seconds < 5


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_raises_keyboardinterrupt_at_once(start, first):
    process, _ = start(RUN.format(then=STAY))
    process.send_signal(first)
    process.stdout.readline()
    time.sleep(ONE_REQUEST + 0.1)
    process.send_signal(signal.SIGINT)
    printed, _, seconds = end(process)
    assert (printed, process.returncode) == (["interrupted", "over"], 0)
    assert seconds < 5


def test_a_signal_that_a_launcher_passes_on_once_more_is_no_second_request(start):
    process, _ = start(RUN.format(then="time.sleep(0.5)"))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(signal.SIGTERM)
    printed, said, _ = end(process)
    assert (printed, process.returncode) == (["over"], 0)
    assert said.count("SIGTERM") == 1


def test_a_signal_that_is_passed_on_when_the_run_is_over_hits_nobody():
    hit = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: hit.append(number))
    again = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    try:
        with StopRequest() as request:
            signal.raise_signal(signal.SIGTERM)
            again.start()
        again.join()
        assert (request.signal, hit) == (signal.SIGTERM, [])
        signal.raise_signal(signal.SIGTERM)
        assert hit == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_on_the_command_line_that_is_told_twice_by_its_launcher_ends_as_told_once(
    few_digits, tmp_path, number, code
):
    words = {
        "data-dir": few_digits, "model": "CifarResNet-8", "image-size": 32, "num-workers": 2, "epochs": 1000,
        "device": "cpu", "experiment-name": "run",
    }  # fmt: skip
    command = [sys.executable, "-m", "attention_transfer", "train"]
    command += [str(word) for key, value in words.items() for word in (f"--{key}", value)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        last = tmp_path / "checkpoints" / "run_last.pth"
        while not last.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        time.sleep(0.2)
        process.send_signal(number)
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert said.count("once more stops at once") == 1
    assert f"Go on with: attention-transfer train --resume {Path('checkpoints', 'run_last.pth')}" in printed
    assert read_checkpoint(last)["training"]["step"] > 0


class Telling:
    """A loader that sends a signal before the batch `at` of its pass `turn`, or behind its last one."""

    def __init__(self, turn, at):
        self.images, self.labels = tensors(12)
        self.turn, self.at = turn, at

    def __iter__(self):
        self.turn -= 1
        for batch in range(4):
            if (self.turn, self.at) == (0, batch):
                os.kill(os.getpid(), signal.SIGTERM)
            if batch < 3:
                yield self.images[4 * batch : 4 * batch + 4], self.labels[4 * batch : 4 * batch + 4]


def test_with_a_loader_without_position_a_stop_says_what_is_lost(settings, tmp_path, capfd):
    config = {**bring(settings), "num_classes": 4, "epochs": 5}
    results = train_at(config, Telling(2, 1))
    assert (results["status"], results["stopped_by"]) == ("stopped", "SIGTERM")
    said = capfd.readouterr().err
    assert "SIGTERM: the batch is finished; what is trained since the last completed epoch is lost" in said
    assert "saved" not in said
    assert read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["training"]["step"] == 3
    assert train_at({**config, "resume": "auto"}, Telling(0, 0))["status"] == "finished"


def test_a_signal_between_two_epochs_stops_there_and_costs_nothing(settings, tmp_path):
    config = {**bring(settings), "num_classes": 4, "epochs": 2}
    # the first pass of a loader that validates is the look at a few images to draw; behind the last batch of the
    # second one, the first epoch is all but saved
    stopped = train_at(config, Telling(0, 0), Telling(2, 3))
    assert (stopped["status"], len(stopped["training_history"])) == ("stopped", 1)
    last = read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")
    assert (last["epoch"], last["training"]["step"], last["training"]["unfinished"]) == (1, 3, None)
    # after the last epoch too: the test is left to the run that goes on
    resumed = {**config, "resume": "auto"}
    stopped = train_at(resumed, Telling(0, 0), Telling(2, 3), Telling(0, 0))
    assert (stopped["status"], len(stopped["training_history"]), stopped["test_results"]) == ("stopped", 2, None)
    finished = train_at(resumed, Telling(0, 0), Telling(0, 0), Telling(0, 0))
    assert (finished["status"], finished["test_results"]["samples"]) == ("finished", 12)


def test_a_signal_during_the_test_says_that_the_test_goes_on(settings, capfd):
    results = train_at({**bring(settings), "num_classes": 4}, Telling(0, 0), test_loader=Telling(1, 1))
    assert (results["status"], results["test_results"]["samples"]) == ("finished", 12)
    assert "SIGTERM: training is over, and the test goes on to its end; once more" in capfd.readouterr().err


def test_handlers_are_put_back_also_after_an_error():
    def mine(number, frame):
        raise AssertionError("not while a run listens")

    before = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.signal(signal.SIGTERM, mine)}
    try:
        with pytest.raises(Stopped, match="asked to stop by SIGTERM") as stopped, StopRequest() as request:  # noqa: PT012
            signal.raise_signal(signal.SIGTERM)
            raise Stopped(request.signal)
        assert stopped.value.signal is signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])


def test_a_request_of_one_run_is_not_the_next_ones():
    with StopRequest() as first:
        signal.raise_signal(signal.SIGINT)
    with StopRequest() as second:
        pass
    assert (first.signal, second.signal) == (signal.SIGINT, None)


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as request:
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert request.signal is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_request_is_noticed_where_there_is_no_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "__stderr__", None)
    with StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
    assert request.signal is signal.SIGTERM


def test_outside_the_main_thread_no_handler_is_set():
    seen = []

    def run():
        with StopRequest() as request:
            seen.append((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), request.signal))

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(*before, None)]


def test_a_forked_process_leaves_ctrl_c_to_its_parent_and_ends_when_terminated():
    with StopRequest() as request:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        os.kill(child.pid, signal.SIGINT)
        child.join(0.5)
        assert child.is_alive()
        child.terminate()
        child.join(10)
    assert (child.exitcode, request.signal) == (-signal.SIGTERM, None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_the_workers_at_work_until_the_run_ends_them(start, number):
    process, workers = start(
        LOADER
        + "with StopRequest() as request:\n"
        + "    print('listening', flush=True)\n"
        + "    while request.signal is None:\n        next(batches)\n"
        + "    for _ in range(40):\n        next(batches)\n"
        + "print('finished', flush=True)\n"
        + "del batches\nbegan = time.monotonic()\nclose_loader(loader)\nprint(time.monotonic() - began)\n"
    )
    assert process.stdout.readline() == "listening\n"
    os.killpg(process.pid, number)
    (finished, seconds), said, _ = end(process)
    assert (finished, process.returncode) == ("finished", 0), said
    assert float(seconds) < 4  # else torch has given up waiting for them
    assert all_end(map(int, workers), 5)


def test_a_worker_that_is_killed_ends_the_run_with_the_remedy_and_not_in_a_hang(start):
    process, workers = start(LOADER + "with telling_of_lost_workers():\n    for batch in batches:\n        pass\n")
    os.kill(int(workers[0]), signal.SIGKILL)
    _, said, seconds = end(process, timeout=60)
    assert process.returncode == 1
    assert "DataError: a process that loads images is gone (DataLoader worker (pid" in said
    assert "is killed by signal: Killed), most often for want of memory; lower num_workers" in said
    assert seconds < 30
    assert all_end(map(int, workers), 10)


def test_workers_end_when_their_process_is_killed(start):
    process, workers = start(LOADER + "time.sleep(60)\n")
    process.kill()
    process.wait()
    assert all_end(map(int, workers), 20)


def test_a_program_that_ends_beside_open_loaders_does_not_wait_for_their_workers(start):
    process, workers = start(
        LOADER + "other = iter(DataLoader(Slow(), 2, num_workers=1, worker_init_fn=prepare_worker))\n"
    )
    _, said, seconds = end(process)
    assert (process.returncode, said) == (0, "")
    assert seconds < 15
    assert all_end(map(int, workers), 5)


class Asleep(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        time.sleep(60)


def test_a_worker_that_does_not_answer_ends_when_its_parent_terminates_it_and_at_nobody_elses_word():
    batches = iter(DataLoader(Asleep(), num_workers=1, worker_init_fn=prepare_worker))
    (worker,) = batches._workers
    deadline = time.monotonic() + 20
    while len(psutil.Process(worker.pid).threads()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    subprocess.run(["bash", "-c", f"kill -TERM {worker.pid}"], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(5)
    assert worker.exitcode == 0
