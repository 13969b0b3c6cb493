"""What may be different when a run goes on, and what is said of it."""

from __future__ import annotations

import pytest

from attention_transfer import ConfigError, train_at
from attention_transfer.checkpoint import read_checkpoint, write_checkpoint


@pytest.fixture
def settings(settings):
    return {**settings, "model": "CifarResNet-8", "batch_size": 20, "precision": "fp32"}


def test_another_torch_is_said_to_end_the_equality_of_bits(settings, tmp_path):
    train_at(settings)
    path = tmp_path / "checkpoints" / "run_last.pth"
    content = read_checkpoint(path)
    content["training"]["made_with"]["torch"] = "1.0"
    write_checkpoint(path, content)
    assert len(train_at({"resume": str(path), "epochs": 2})["training_history"]) == 2
    log = (tmp_path / "logs" / "run.log").read_text()
    assert "not bit for bit" in log
    assert "was 1.0" in log


def test_without_a_change_nothing_of_the_kind_is_said(settings, tmp_path):
    train_at(settings)
    train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2})
    assert "not bit for bit" not in (tmp_path / "logs" / "run.log").read_text()


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 10}, {"seed": 3}, {"augment": True}, {"beta": 5.0}, {"image_size": 40}, {"augment_seed": 2}],
)
def test_the_recipe_may_not_change(settings, tmp_path, change):
    train_at(settings)
    (key,) = change
    with pytest.raises(ConfigError, match=rf"{key} is .*, but .*run_last\.pth was trained with"):
        train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2, **change})


def test_caches_and_frequencies_may_change(settings, tmp_path):
    train_at(settings)
    changes = {"pixel_cache": "off", "teacher_cache": "off", "cache_dir": str(tmp_path / "c"), "save_minutes": 3.0}
    resumed = train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2, **changes})
    assert {key: resumed["config"][key] for key in changes} == changes
