"""Going on from a checkpoint: bit for bit where nothing changed, refused where it would be another run."""

from __future__ import annotations

import pytest
import torch
from support.runs import scalars, without_clock

from attention_transfer import CheckpointError, ConfigError, TeacherError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(settings):
    return {
        **{key: value for key, value in settings.items() if key != "experiment_name"},
        "model": "CifarResNet-8",
        "num_workers": 1,
        "augment": True,
        "step_size": 2,
        "lr": 0.05,
        "save_freq": 1,
        "print_freq": 2,
    }


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    return create_model("CifarResNet-14", 10)


def test_a_resumed_run_ends_bit_identical_to_the_uninterrupted_one(settings, teacher, tmp_path):
    settings = {**settings, "figure_freq": 3}
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


def val_accuracy(results, epoch):
    return results["training_history"][epoch - 1]["val_accuracy"]


@pytest.fixture
def falling(settings):
    """Settings of a run that is best early: the learning rate is so high that validation falls apart later."""
    return {**settings, "augment": False, "num_workers": 0, "lr": 0.02, "step_size": 100, "experiment_name": "run"}


def best_of(results):
    return max(record["val_accuracy"] for record in results["training_history"])


@pytest.mark.parametrize("change", [{"experiment_name": "branch"}, {"save_dir": "elsewhere"}])
def test_the_best_weights_travel_with_a_run_that_goes_on_elsewhere(falling, tmp_path, change):
    import shutil

    train_at({**falling, "epochs": 3})
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")
    best = read_checkpoint(tmp_path / "checkpoints" / "run_best.pth")
    shutil.copy(tmp_path / "checkpoints" / "run_last.pth", tmp_path / "moved.pth")
    change = {key: str(tmp_path / value) if key == "save_dir" else value for key, value in change.items()}
    results = train_at({"resume": str(tmp_path / "moved.pth"), **change})
    assert results["best_accuracy"] == checkpoint["best_accuracy"] == best_of(results)
    for key, value in best["model_state_dict"].items():
        assert torch.equal(value, results["model"].state_dict()[key]), key
    name = change.get("experiment_name", "run")
    folder = tmp_path / ("checkpoints" if "save_dir" not in change else "elsewhere")
    assert read_checkpoint(folder / f"{name}_best.pth")["epoch"] == checkpoint["training"]["best_epoch"]
    assert (folder / f"{name}_final.pth").exists()


def test_going_on_from_before_the_best_epoch_forgets_the_best_of_the_other_future(falling, tmp_path):
    train_at({**falling, "epochs": 4})
    results = train_at({"resume": str(tmp_path / "checkpoints" / "run_epoch_1.pth"), "epochs": 1})
    first = read_checkpoint(tmp_path / "checkpoints" / "run_epoch_1.pth")
    assert results["best_accuracy"] == first["best_accuracy"]
    assert read_checkpoint(tmp_path / "checkpoints" / "run_best.pth")["epoch"] == 1
    for key, value in first["model_state_dict"].items():
        assert torch.equal(value, results["model"].state_dict()[key]), key


def test_device_folders_and_frequencies_may_change(settings, tmp_path):
    train_at({**settings, "epochs": 1, "experiment_name": "run"})
    free = {
        "device": "cpu", "num_workers": 0, "print_freq": 7, "save_freq": 3, "log_dir": str(tmp_path / "other-logs"),
        "save_dir": str(tmp_path / "other"), "data_dir": settings["data_dir"] + "/.", "epochs": 2,
    }  # fmt: skip
    results = train_at({"resume": str(tmp_path / "checkpoints" / "run_best.pth"), **free})
    assert {key: results["config"][key] for key in free} == free
    assert (tmp_path / "other" / "run_final.pth").exists()
    assert (tmp_path / "other-logs" / "run_summary.json").exists()
