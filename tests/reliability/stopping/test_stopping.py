"""Asked to stop, by whatever signal: what a run notices, says and saves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from support.programs import BEFORE_IT_HANGS, end
from support.runs import bring, tensors
from support.warm import Program

from attention_transfer import train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.training import signals as stopping
from attention_transfer.training.signals import ONE_REQUEST, SignalHandler, Stopped

pytestmark = [pytest.mark.usefixtures("ctrl_c_counts"), pytest.mark.speed]

RUN = """
import time
from attention_transfer.training import signals as stopping
from attention_transfer.training.signals import SignalHandler
stopping.ONE_REQUEST = {one_request}
try:
    with SignalHandler() as request:
        print("ready", flush=True)
        while request.signal is None:
            time.sleep(0.01)
        print(request.signal.name, flush=True)
        {then}
except KeyboardInterrupt:
    print("interrupted", flush=True)
print("over", flush=True)
"""
SHORT, LONG = 0.1, 1000.0
"""Seconds of one request: always over after twice as long, and never over."""


def program(then="", one_request=SHORT):
    return RUN.format(then=then, one_request=one_request)


STAY = "time.sleep(1000)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_remembered_and_told_in_one_line(start, number):
    process, _ = start(program())
    process.send_signal(number)
    printed, said = end(process)
    assert printed == [number.name, "over"]
    assert said.split("\n") == [
        "", f"{number.name}: the batch is finished and the run saved; once more stops at once", "",
    ]  # fmt: skip
    assert process.returncode == 0


def test_a_second_sigterm_ends_the_process_at_once(start):
    process, _ = start(program(STAY))
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    time.sleep(2 * SHORT)
    process.send_signal(signal.SIGTERM)
    printed, _ = end(process)
    assert (printed, process.returncode) == ([], -signal.SIGTERM)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_raises_keyboardinterrupt_at_once(start, first):
    process, _ = start(program(STAY))
    process.send_signal(first)
    process.stdout.readline()
    time.sleep(2 * SHORT)
    process.send_signal(signal.SIGINT)
    printed, _ = end(process)
    assert (printed, process.returncode) == (["interrupted", "over"], 0)


class Clock:
    """The time as the code under test sees it; while it sleeps, something may happen."""

    def __init__(self, meanwhile=lambda: None):
        self.now, self.meanwhile = 1000.0, meanwhile

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.meanwhile()
        self.now += seconds


@pytest.fixture
def hit():
    """The signals that reach whoever was there before a request listened."""
    numbers = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGTERM, before)


def test_a_signal_that_a_launcher_passes_on_within_a_second_is_no_second_request(monkeypatch, capfd, hit):
    clock = Clock()
    monkeypatch.setattr(stopping, "time", clock)
    with SignalHandler() as request:
        signal.raise_signal(signal.SIGTERM)
        clock.now += ONE_REQUEST - 0.01
        signal.raise_signal(signal.SIGTERM)
        assert (request.signal, hit) == (signal.SIGTERM, [])
        clock.now += 0.02
        signal.raise_signal(signal.SIGTERM)
        assert hit == [signal.SIGTERM]
    assert capfd.readouterr().err.count("SIGTERM") == 1


def test_a_signal_that_is_passed_on_when_the_run_is_over_hits_nobody(monkeypatch, hit):
    monkeypatch.setattr(stopping, "time", Clock(lambda: signal.raise_signal(signal.SIGTERM)))
    with SignalHandler() as request:
        signal.raise_signal(signal.SIGTERM)
    assert (request.signal, hit) == (signal.SIGTERM, [])
    signal.raise_signal(signal.SIGTERM)
    assert hit == [signal.SIGTERM]


WITH_LONGER_REQUESTS = """
import sys
from attention_transfer.cli.app import main
from attention_transfer.training import signals as stopping
stopping.ONE_REQUEST = 4.0
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_on_the_command_line_that_is_told_twice_by_its_launcher_ends_as_told_once(
    few_digits, tmp_path, number, code
):
    words = {
        "data-dir": few_digits, "model": "CifarResNet-8", "image-size": 16, "num-workers": 2, "epochs": 1000,
        "device": "cpu", "experiment-name": "run", "precision": "fp32", "figure-freq": 0,
    }  # fmt: skip
    command = [str(word) for key, value in words.items() for word in (f"--{key}", value)]
    # its second is a longer one, in which this process is sure to pass the signal on
    process = Program("-c", WITH_LONGER_REQUESTS, "train", *command, cwd=tmp_path)
    try:
        last = tmp_path / "checkpoints" / "run_last.pth"
        while not last.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        said = ""
        while "once more stops at once" not in said and process.poll() is None:
            said += process.stderr.readline()
        process.send_signal(number)
        printed, rest = process.communicate(timeout=BEFORE_IT_HANGS)
        said += rest
    finally:
        process.kill()
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert said.count("once more stops at once") == 1
    assert f"Go on with: attention-transfer train --resume {Path('checkpoints', 'run_last.pth')}" in printed
    assert read_checkpoint(last)["training"]["step"] > 0


class Telling:
    """A loader that sends a signal before the batch `at` of its epoch `turn`, or behind its last one."""

    def __init__(self, turn=None, at=None):
        self.images, self.labels = tensors(12)
        self.turn, self.at = turn, at
        self.epoch = -1  # the first pass is the look at one batch before training

    def __iter__(self):
        self.epoch += 1
        for batch in range(4):
            if (self.epoch, batch) == (self.turn, self.at):
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
    assert train_at({**config, "resume": "auto"}, Telling())["status"] == "finished"


def test_a_signal_between_two_epochs_stops_there_and_costs_nothing(settings, tmp_path):
    config = {**bring(settings), "num_classes": 4, "epochs": 2}
    # behind the last batch of validation, the first epoch is all but saved
    stopped = train_at(config, Telling(), Telling(1, 3))
    assert (stopped["status"], len(stopped["training_history"])) == ("stopped", 1)
    last = read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")
    assert (last["epoch"], last["training"]["step"], last["training"]["unfinished"]) == (1, 3, None)
    # after the last epoch too: the test is left to the run that goes on
    resumed = {**config, "resume": "auto"}
    stopped = train_at(resumed, Telling(), Telling(1, 3), Telling())
    assert (stopped["status"], len(stopped["training_history"]), stopped["test_results"]) == ("stopped", 2, None)
    finished = train_at(resumed, Telling(), Telling(), Telling())
    assert (finished["status"], finished["test_results"]["samples"]) == ("finished", 12)


def test_a_signal_during_the_test_says_that_the_test_goes_on(settings, capfd):
    results = train_at({**bring(settings), "num_classes": 4}, Telling(), test_loader=Telling(1, 1))
    assert (results["status"], results["test_results"]["samples"]) == ("finished", 12)
    assert "SIGTERM: training is over, and the test goes on to its end; once more" in capfd.readouterr().err


def test_handlers_are_put_back_also_after_an_error():
    def mine(number, frame):
        raise AssertionError("not while a run listens")

    before = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.signal(signal.SIGTERM, mine)}
    try:
        with pytest.raises(Stopped, match="asked to stop by SIGTERM") as stopped, SignalHandler() as request:  # noqa: PT012
            signal.raise_signal(signal.SIGTERM)
            raise Stopped(request.signal.name)
        assert stopped.value.by == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])


def test_a_request_of_one_run_is_not_the_next_ones():
    with SignalHandler() as first:
        signal.raise_signal(signal.SIGINT)
    with SignalHandler() as second:
        pass
    assert (first.signal, second.signal) == (signal.SIGINT, None)


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with SignalHandler() as request:
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert request.signal is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_request_is_noticed_where_there_is_no_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "__stderr__", None)
    with SignalHandler() as request:
        signal.raise_signal(signal.SIGTERM)
    assert request.signal is signal.SIGTERM


def test_outside_the_main_thread_no_handler_is_set():
    seen = []

    def run():
        with SignalHandler() as request:
            seen.append((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), request.signal))

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(*before, None)]


def test_a_forked_process_leaves_ctrl_c_to_its_parent_and_ends_when_terminated():
    with SignalHandler() as request:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
        child.start()
        os.kill(child.pid, signal.SIGINT)
        child.join(0.5)
        assert child.is_alive()
        child.terminate()
        child.join(BEFORE_IT_HANGS)
    assert (child.exitcode, request.signal) == (-signal.SIGTERM, None)
