"""The same command given again and again: resume='auto' loses nothing, and takes nothing that is another run's."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from support import warm
from support.runs import assert_same_weights, scalars

from attention_transfer import CheckpointError, ConfigError, create_at_config, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.config import Config
from attention_transfer.training.setup import prepare as preparing

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(settings, tmp_path):
    return {
        **settings,
        "model": "CifarResNet-8",
        "batch_size": 16,
        "epochs": 2,
        "lr": 0.05,
        "save_freq": 1,
        "precision": "fp32",
        "cache_dir": str(tmp_path / "cache"),
        "resume": "auto",
    }


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def step_of(path):
    return read_checkpoint(path)["training"]["step"]


def change(path, **training):
    """Write a checkpoint anew with other entries in its training state."""
    content = read_checkpoint(path)
    content["training"] = {**content["training"], **training}
    write_checkpoint(path, content)


def stopping_student(batches):
    """A student that asks for a stop in a batch of training; its weights are those of a run's own network."""
    left = [batches]
    torch.manual_seed(Config().seed)

    def count(module, arguments, output):
        left[0] -= module.training
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    network = create_model("CifarResNet-8", 10)
    network.register_forward_hook(count)
    return network


KILLED = """
import json, os, signal, sys
from attention_transfer import create_model, train_at

network = create_model("CifarResNet-8", 10)
network.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
train_at(json.loads(sys.argv[1]), student=network)
"""


def kill_in_the_first_batch(settings):
    killed = warm.run("-c", KILLED, json.dumps(settings))
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def test_checkpoints_that_are_damaged_are_set_aside_and_not_removed(settings, folder, tmp_path):
    train_at(settings)
    kept = {path.name: path.read_bytes()[:-1] for path in folder.iterdir()}
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    again = train_at({**settings, "epochs": 1})
    assert again["status"] == "finished"
    for name, content in kept.items():
        assert (folder / f"{name}.aside-1").read_bytes() == content
    assert (tmp_path / "logs" / "run.log.aside-1").exists()
    assert len(scalars(tmp_path / "logs" / "run")["loss/train"]) == 1


def test_a_checkpoint_of_a_newer_version_ends_in_a_sentence_and_stays(settings, folder):
    train_at(settings)
    content = read_checkpoint(folder / "run_last.pth")
    write_checkpoint(folder / "run_last.pth", {**content, "version": 99})
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match=r"was written in format 99.*upgrade it"):
        train_at(settings)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_where_nothing_can_be_read_at_all_nothing_is_begun(settings, folder, monkeypatch):
    train_at(settings)

    def broken(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("attention_transfer.checkpoint.is_intact", broken)
    before = names(folder)
    with pytest.raises(CheckpointError, match="cannot be read: Input/output error"):
        train_at(settings)
    assert names(folder) == before


def test_a_renamed_checkpoint_is_gone_on_from_and_kept(settings, folder):
    whole = train_at(settings)
    other = folder.with_name("other")
    other.mkdir()
    shutil.copy(folder / "run_epoch_1.pth", other / "foo_last.pth")
    here = {**settings, "experiment_name": "foo", "save_dir": str(other)}
    kill_in_the_first_batch(here)
    assert step_of(other / "foo_last.pth") == 5
    assert_same_weights(train_at(here)["model"], whole["model"])


def test_the_name_is_taken_before_anything_is_looked_for(settings, folder, monkeypatch):
    seen = []
    find = preparing.find_resume_point

    def look(config, runtime):
        seen.append(names(folder))
        return find(config, runtime)

    monkeypatch.setattr(preparing, "find_resume_point", look)
    train_at(settings)
    assert seen == [[".run.lock"]]


def test_the_logs_of_a_run_with_other_checkpoints_are_left_alone(settings, folder, tmp_path):
    train_at(settings)
    before = {path: path.read_bytes() for path in (tmp_path / "logs").rglob("*") if path.is_file()}
    for resume in ("auto", None):
        with pytest.raises(ConfigError, match=r"run_summary.json is of a run of this name with its checkpoints in"):
            train_at({**settings, "save_dir": str(tmp_path / "elsewhere"), "resume": resume})
    assert {path: path.read_bytes() for path in (tmp_path / "logs").rglob("*") if path.is_file()} == before


def test_two_runs_of_one_name_do_not_share_a_folder_of_logs(settings, tmp_path):
    class Second:
        refusal = None

        def __call__(self, module, arguments, output):
            if self.refusal is None:
                with pytest.raises(ConfigError) as self.refusal:
                    train_at({**settings, "save_dir": str(tmp_path / "elsewhere")})

    network, second = create_model("CifarResNet-8", 10), Second()
    network.register_forward_hook(second)
    train_at({**settings, "epochs": 1}, student=network)
    assert second.refusal.match("a run of this name is alive")


def test_it_goes_on_in_the_folder_in_which_it_looked(settings, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train_at({**settings, "save_dir": "old/checkpoints", "log_dir": "old/logs"}, student=stopping_student(7))
    (tmp_path / "old" / "checkpoints").rename(folder)
    here = {key: value for key, value in settings.items() if key not in ("save_dir", "log_dir")}
    train_at(here, student=stopping_student(2))
    assert step_of(folder / "run_last.pth") == 9
    assert not (tmp_path / "old" / "checkpoints").exists()


def test_a_run_that_starts_from_another_is_safe_before_its_first_batch(settings, folder):
    train_at(settings, student=stopping_student(7))
    branch = {**settings, "experiment_name": "branch", "resume": str(folder / "run_last.pth")}
    kill_in_the_first_batch(branch)
    assert step_of(folder / "branch_last.pth") == 7
    with pytest.raises(ConfigError, match=r"resume='[^']*branch_last.pth'"):
        train_at(branch)
    whole = train_at({**settings, "resume": None, "overwrite": True})
    assert_same_weights(train_at({**branch, "resume": "auto"})["model"], whole["model"])


def test_a_run_does_not_end_before_the_place_that_it_goes_on_from(settings, folder):
    train_at(settings, student=stopping_student(7))
    with pytest.raises(ConfigError, match=r"epochs is 1, but .*run_last.pth is inside epoch 2; set epochs to 2 or mo"):
        train_at({**settings, "epochs": 1})
    train_at(settings)
    with pytest.raises(ConfigError, match=r"epochs is 1, but .* is after epoch 2"):
        train_at({**settings, "epochs": 1})


def test_final_is_the_last_epoch_of_all_or_is_not_there(settings, folder):
    train_at({**settings, "epochs": 1})
    train_at({**settings, "epochs": 3}, student=stopping_student(3))
    assert "run_final.pth" not in names(folder)
    train_at({**settings, "epochs": 3})
    (folder / "run_final.pth").write_bytes(b"")
    train_at({**settings, "epochs": 3})
    assert step_of(folder / "run_final.pth") == step_of(folder / "run_last.pth") == 15


def test_going_back_sets_the_later_checkpoints_aside(settings, folder):
    train_at({**settings, "epochs": 4})
    train_at({**settings, "resume": str(folder / "run_epoch_1.pth"), "epochs": 4}, student=stopping_student(2))
    assert step_of(folder / "run_last.pth") == 7
    aside = [name for name in names(folder) if name.endswith(".aside-1")]
    assert {f"run_{of}.pth.aside-1" for of in ("last", "final", "epoch_2", "epoch_3", "epoch_4")} <= set(aside)
    rest = train_at({**settings, "epochs": 4})
    assert [record["epoch"] for record in rest["training_history"]] == [1, 2, 3, 4]


def test_a_setting_that_is_given_counts_also_where_it_is_the_default(settings, folder):
    train_at(settings)
    source = {"resume": str(folder / "run_last.pth"), "device": "cpu"}
    with pytest.raises(ConfigError, match=r"batch_size is 32, but .* was trained with 16"):
        train_at({**source, "batch_size": 32})
    resumed = train_at({**source, "epochs": 3, "print_freq": create_at_config()["print_freq"]})
    assert resumed["config"]["batch_size"] == 16


def test_of_a_complete_dict_the_defaults_are_filled_in_and_told(settings, folder, tmp_path):
    train_at({**settings, "print_freq": 3})
    train_at(create_at_config(resume=str(folder / "run_last.pth"), device="cpu", epochs=3))
    log = (tmp_path / "logs" / "run.log").read_text()
    assert "settings that are at their defaults here are taken from" in log
    assert "batch_size=16" in log
    assert "print_freq=3" in log


@pytest.mark.parametrize(
    "training",
    [{"step": "3"}, {"data_digest": 1}, {"random": {}}, {"optimizer": {}}, {"unfinished": {"batches": 1}}],
)
def test_a_malformed_state_is_a_sentence(settings, folder, training):
    train_at(settings)
    change(folder / "run_last.pth", **training)
    with pytest.raises(CheckpointError, match=r"run_last.pth (is malformed|does not fit this run)"):
        train_at({**settings, "resume": str(folder / "run_last.pth"), "epochs": 3})


def test_a_state_without_random_numbers_that_torch_takes_is_a_sentence(settings, folder):
    train_at(settings)
    random = read_checkpoint(folder / "run_last.pth")["training"]["random"]
    change(folder / "run_last.pth", random={**random, "torch": torch.zeros(3, dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match=r"run_last.pth does not fit this run"):
        train_at({**settings, "resume": str(folder / "run_last.pth"), "epochs": 3})


@pytest.mark.parametrize("config", [{"newkey": 1}, {}, {"lr": -1}])
def test_settings_of_another_version_are_the_checkpoints_fault(settings, folder, config):
    train_at(settings)
    content = read_checkpoint(folder / "run_last.pth")
    write_checkpoint(folder / "run_last.pth", {**content, "config": {**config}})
    for path in Path(folder).glob("run_[bef]*.pth"):
        path.unlink()
    source = {**settings, "resume": str(folder / "run_last.pth"), "epochs": 3, "experiment_name": "other"}
    if config:
        with pytest.raises(CheckpointError, match=r"run_last.pth is malformed, or of another version"):
            train_at(source)
        assert train_at({**settings, "epochs": 1})["status"] == "finished"
        assert "run_last.pth.aside-1" in names(folder)
    else:
        with pytest.raises((ConfigError, CheckpointError)):
            train_at(source)
