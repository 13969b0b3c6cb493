"""A run that stops inside an epoch goes on at the very batch, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import threading

import numpy as np
import pytest
import torch
from support import warm
from support.runs import assert_same_weights, scalars, without_clock

from attention_transfer import ConfigError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.speed]

RECIPE = {
    "model": "CifarResNet-8",
    "num_workers": 1,
    "batch_size": 8,
    "augment": True,
    "augment_views": 2,
    "epochs": 3,
    "step_size": 2,
    "lr": 0.05,
    "precision": "fp32",
    "teacher_precision": "fp32",
    "figure_freq": 0,
    "print_freq": 3,
    "save_freq": 2,
}


@pytest.fixture
def settings(settings, tmp_path):
    return {**settings, **RECIPE, "cache_dir": str(tmp_path / "cache")}


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    return create_model("CifarResNet-8", 10)


@pytest.fixture(scope="module")
def whole(few_digits, teacher, tmp_path_factory):
    """The results of a run that nobody stops, and the folder of its checkpoints and logs."""
    return run_whole(tmp_path_factory.mktemp("whole"), few_digits, student(), teacher)


def run_whole(folder, data, network, teacher, **changes):
    folders = {key: str(folder / name) for key, name in FOLDERS.items()}
    common = {"data_dir": str(data), "image_size": 16, "device": "cpu", "experiment_name": "whole"}
    return train_at({**RECIPE, **common, **folders, **changes}, student=network, teacher=teacher), folder


FOLDERS = {"cache_dir": "cache", "save_dir": "checkpoints", "log_dir": "logs"}


class SignalAt:
    """A student that asks for a stop after so many forward passes of training (or of measuring)."""

    def __init__(self, student, passes, wanted=signal.SIGTERM, *, training=True):
        self.left, self.wanted, self.training = passes, wanted, training
        self.hook = student.register_forward_hook(self)

    def __call__(self, module, arguments, output):
        if module.training == self.training:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), self.wanted)


def student():
    torch.manual_seed(5)
    return create_model("CifarResNet-8", 10)


class Forgetful(torch.nn.Module):
    """A network with dropout, whose draws come from torch's global generator, and from Python's and NumPy's too."""

    def __init__(self):
        super().__init__()
        self.body = create_model("CifarResNet-8", 10)
        self.drop = torch.nn.Dropout(0.2)

    def forward(self, x):
        if not self.training:
            return self.body(x)
        return self.body(self.drop(x)) * (1 + 0.1 * random.random() + 0.1 * np.random.random())


def forgetful_student():
    torch.manual_seed(5)
    return Forgetful()


@pytest.mark.parametrize(("passes", "training"), [(1, True), (4, True), (10, True), (13, True), (25, True), (2, False)])
def test_after_sigterm_it_goes_on_at_the_very_batch(settings, teacher, tmp_path, whole, passes, training):
    stopped_student = student()
    SignalAt(stopped_student, passes, training=training)
    stopped = train_at(settings, student=stopped_student, teacher=teacher)
    assert (stopped["status"], stopped["stopped_by"]) == ("stopped", "SIGTERM")
    last = read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["training"]
    assert last["step"] == (passes if training else 10)
    if passes % 10:
        assert last["unfinished"]["images"] == 8 * last["unfinished"]["batches"] == 8 * (last["step"] % 10 or 10)

    resumed = train_at({**settings, "resume": "auto"}, student=student(), teacher=teacher)
    assert_the_same_run(tmp_path, resumed, *whole)


LAYERS = tuple(f"body.{layer}:{layer}" for layer in ("layer1", "layer2", "layer3"))


@pytest.fixture(scope="module")
def forgetful_whole(few_digits, teacher, tmp_path_factory):
    return run_whole(tmp_path_factory.mktemp("forgetful"), few_digits, forgetful_student(), teacher, layers=LAYERS)


@pytest.mark.parametrize("passes", [4, 13])
def test_dropout_and_all_that_is_drawn_from_global_generators_goes_on_where_it_was(
    settings, teacher, tmp_path, forgetful_whole, passes
):
    settings = {**settings, "layers": LAYERS}
    stopped_student = forgetful_student()
    SignalAt(stopped_student, passes)
    assert train_at(settings, student=stopped_student, teacher=teacher)["status"] == "stopped"
    resumed = train_at({**settings, "resume": "auto"}, student=forgetful_student(), teacher=teacher)
    assert_the_same_run(tmp_path, resumed, *forgetful_whole)


def assert_the_same_run(folder, resumed, whole, folder_of_whole):
    """Their results, optimizers and TensorBoard runs (named run and whole) are the same to the bit."""
    assert resumed["status"] == "finished"
    assert without_clock(resumed["training_history"]) == without_clock(whole["training_history"])
    assert_same_weights(resumed["model"], whole["model"])
    one = read_checkpoint(folder / "checkpoints" / "run_final.pth")
    other = read_checkpoint(folder_of_whole / "checkpoints" / "whole_final.pth")
    for mine, theirs in zip(
        one["training"]["optimizer"]["state"].values(), other["training"]["optimizer"]["state"].values(), strict=True
    ):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])
    assert scalars(folder / "logs" / "run") == scalars(folder_of_whole / "logs" / "whole")


def test_the_last_state_is_saved_inside_an_epoch_every_save_minutes(settings, teacher, tmp_path):
    seen = []

    class Look:
        def __init__(self, network):
            network.register_forward_hook(self)

        def __call__(self, module, arguments, output):
            path = tmp_path / "checkpoints" / "run_last.pth"
            if module.training and path.exists():
                seen.append(read_checkpoint(path)["training"]["step"])

    network = student()
    Look(network)
    train_at({**settings, "epochs": 1, "save_minutes": 1e-9}, student=network, teacher=teacher)
    assert seen == list(range(1, 10))


KILLED_BEHIND_A_SAVE = """
import json, os, signal, sys, time
from tensorboard.summary.writer.record_writer import RecordWriter
from attention_transfer import train_at
from attention_transfer.training.callbacks import checkpoints

write_checkpoint, write_record, saves = checkpoints.write_checkpoint, RecordWriter.write, 0

def write_and_be_killed(path, content):
    global saves
    write_checkpoint(path, content)
    saves += 1
    if saves == 4:
        os.kill(os.getpid(), signal.SIGKILL)

def write_to_a_slow_disk(writer, record):
    time.sleep(0.2)
    write_record(writer, record)

checkpoints.write_checkpoint, RecordWriter.write = write_and_be_killed, write_to_a_slow_disk
train_at(json.loads(sys.argv[1]))
"""


def test_a_kill_right_behind_a_save_inside_an_epoch_finds_all_points_of_tensorboard_on_disk(settings, tmp_path):
    settings = {**settings, "num_workers": 0, "print_freq": 1, "save_minutes": 1e-9}
    done = warm.run("-c", KILLED_BEHIND_A_SAVE, json.dumps(settings))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["training"]["step"] == 4
    points = scalars(tmp_path / "logs" / "run")
    for tag in ("batch/loss", "batch/accuracy"):
        assert [step for step, _ in points.get(tag, [])] == [1, 2, 3, 4]


def test_auto_starts_anew_where_there_is_nothing_and_needs_a_name(settings, teacher, tmp_path):
    results = train_at({**settings, "epochs": 1, "resume": "auto"}, teacher=teacher)
    assert results["status"] == "finished"
    assert "finds no checkpoint of run: the run begins" in (tmp_path / "logs" / "run.log").read_text()
    with pytest.raises(ConfigError, match="experiment_name is None"):
        train_at({**settings, "experiment_name": None, "resume": "auto"}, teacher=teacher)


def test_auto_takes_the_newest_by_step_that_verifies_and_names_what_it_skipped(settings, teacher, tmp_path):
    whole = train_at({**settings, "epochs": 4, "save_freq": 1, "experiment_name": "whole"}, teacher=teacher)
    train_at({**settings, "epochs": 4, "save_freq": 1}, teacher=teacher)
    folder = tmp_path / "checkpoints"
    (folder / "run_final.pth").unlink()
    (folder / "run_epoch_4.pth").unlink()
    for name in ("run_last.pth", "run_best.pth"):
        raw = bytearray((folder / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (folder / name).write_bytes(raw)
    os.utime(folder / "run_epoch_1.pth")  # the latest by time is not the newest
    resumed = train_at({**settings, "epochs": 4, "save_freq": 1, "resume": "auto"}, teacher=teacher)
    log = (tmp_path / "logs" / "run.log").read_text()
    assert "skips run_last.pth" in log
    assert "skips run_best.pth" in log
    assert f"goes on from {folder / 'run_epoch_3.pth'}" in log
    assert_same_weights(resumed["model"], whole["model"])


def test_a_run_goes_on_with_its_images_or_not_at_all(settings, teacher, tmp_path, few_digits):
    import shutil

    data = shutil.copytree(few_digits, tmp_path / "data")
    train_at({**settings, "data_dir": str(data), "epochs": 1}, teacher=teacher)
    changed = {**settings, "data_dir": str(data), "epochs": 2, "resume": "auto"}
    for file in sorted((data / "3").iterdir()):
        (data / "3" / f"more-{file.name}").write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="trained on other images"):
        train_at(changed, teacher=teacher)
    branch = {**changed, "experiment_name": "branch", "resume": str(tmp_path / "checkpoints" / "run_last.pth")}
    assert len(train_at(branch, teacher=teacher)["training_history"]) == 2


def test_in_another_thread_no_handler_is_set(settings, teacher):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    found = {}

    def work():
        found["results"] = train_at({**settings, "epochs": 1, "num_workers": 0}, teacher=teacher)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found["results"]["status"] == "finished"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
