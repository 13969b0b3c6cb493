"""Going on from a checkpoint: bit for bit where nothing changed, refused where it would be another run."""

from __future__ import annotations

import pytest
import torch

from attention_transfer import CheckpointError, ConfigError, TeacherError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint


@pytest.fixture
def settings(tmp_path, few_digits):
    return {
        "model": "CifarResNet-8",
        "data_dir": str(few_digits),
        "image_size": 32,
        "num_workers": 1,
        "augment": True,
        "step_size": 2,
        "lr": 0.05,
        "device": "cpu",
        "save_freq": 1,
        "print_freq": 2,
        "save_dir": str(tmp_path / "checkpoints"),
        "log_dir": str(tmp_path / "logs"),
    }


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    return create_model("CifarResNet-14", 10)


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("run/seconds", "run/images"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def without_clock(history):
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "images_per_second")}
        for record in history
    ]


def test_a_resumed_run_ends_bit_identical_to_the_uninterrupted_one(settings, teacher, tmp_path):
    whole = train_at({**settings, "epochs": 4, "experiment_name": "whole"}, teacher=teacher)
    train_at({**settings, "epochs": 4, "experiment_name": "parts"}, teacher=teacher)
    middle = tmp_path / "checkpoints" / "parts_epoch_2.pth"
    resumed = train_at({"resume": str(middle)}, teacher=teacher)

    assert resumed["experiment_name"] == "parts"
    assert without_clock(resumed["training_history"]) == without_clock(whole["training_history"])
    one = read_checkpoint(tmp_path / "checkpoints" / "whole_final.pth")
    other = read_checkpoint(tmp_path / "checkpoints" / "parts_final.pth")
    for key, value in one["model_state_dict"].items():
        assert torch.equal(value, other["model_state_dict"][key]), key
    for mine, theirs in zip(
        one["training"]["optimizer"]["state"].values(), other["training"]["optimizer"]["state"].values(), strict=True
    ):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])
    assert scalars(tmp_path / "logs" / "parts") == scalars(tmp_path / "logs" / "whole")


def test_the_checkpoint_fills_every_key_left_at_its_default(settings, tmp_path):
    train_at({**settings, "epochs": 1, "experiment_name": "run"})
    resumed = train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2})
    assert resumed["config"]["lr"] == 0.05
    assert resumed["config"]["model"] == "CifarResNet-8"
    assert len(resumed["training_history"]) == 2


def test_a_contradicting_key_is_an_error_that_names_it_and_both_values(settings, tmp_path):
    train_at({**settings, "epochs": 1, "experiment_name": "run"})
    with pytest.raises(ConfigError, match=r"lr is 0\.1, but .*run_last\.pth was trained with 0\.05"):
        train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "lr": 0.1})


def test_another_name_is_a_new_run_that_starts_from_there(settings, tmp_path):
    train_at({**settings, "epochs": 1, "experiment_name": "run"})
    before = (tmp_path / "checkpoints" / "run_last.pth").read_bytes()
    branch = {"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2, "experiment_name": "branch"}
    results = train_at(branch)
    assert results["experiment_name"] == "branch"
    assert (tmp_path / "checkpoints" / "run_last.pth").read_bytes() == before
    assert (tmp_path / "checkpoints" / "branch_final.pth").exists()
    with pytest.raises(ConfigError, match="'branch'"):
        train_at(branch)


def test_another_teacher_than_before_is_refused(settings, teacher, tmp_path):
    train_at({**settings, "epochs": 1, "experiment_name": "run"}, teacher=teacher)
    resume = {"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2}
    with pytest.raises(TeacherError, match=r"no teacher"):
        train_at(resume)
    with pytest.raises(TeacherError, match="hash"):
        train_at(resume, teacher=create_model("CifarResNet-14", 10))
    assert len(train_at(resume, teacher=teacher)["training_history"]) == 2


def test_a_run_that_is_complete_already_is_tested_and_returned(settings, tmp_path):
    first = train_at({**settings, "epochs": 1, "experiment_name": "run"})
    again = train_at({"resume": str(tmp_path / "checkpoints" / "run_final.pth")})
    assert again["training_history"] == first["training_history"]
    assert again["test_results"]["accuracy"] == first["test_results"]["accuracy"]


def test_a_file_that_is_no_checkpoint_of_ours_cannot_be_resumed(settings, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not a checkpoint of attention-transfer"):
        train_at({**settings, "resume": str(tmp_path / "other.pth")})


def test_a_checkpoint_of_another_network_does_not_fit(settings, tmp_path):
    train_at({**settings, "epochs": 1, "experiment_name": "run"})
    resume = {"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2}
    with pytest.raises(CheckpointError, match="does not fit"):
        train_at(resume, student=create_model("ResNet18", 10))
