"""What version 0.1 left on a disk: its checkpoints load and go on, its caches are recognised, named and cleared.

The fixture was made by that version, on a run of three epochs that SIGTERM stopped in its second one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from attention_transfer import load_model, train_at
from attention_transfer.cache.folder import entries
from attention_transfer.cli.app import main

FIXTURE = Path(__file__).parents[2] / "fixtures" / "version_0_1"
CHECKPOINT = "checkpoints/stopped_last.pth"


@pytest.fixture
def left_behind(tmp_path, monkeypatch):
    """The folder of that run, as the current folder."""
    shutil.unpack_archive(FIXTURE / "data_and_cache.tar.xz", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(FIXTURE / "stopped_last.pth", tmp_path / CHECKPOINT)
    shutil.copy(FIXTURE / "teacher.pth", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_checkpoint_loads_with_settings_and_classes(left_behind):
    loaded = load_model(CHECKPOINT, "cpu")
    assert loaded["epoch"] == 1
    assert loaded["class_names"] == list("0123456789")
    assert loaded["config"]["augment_views"] == 2
    assert loaded["model"](torch.zeros(1, 3, 16, 16)).shape == (1, 10)


def test_its_run_goes_on_inside_the_epoch_and_ends_as_it_would_have(left_behind):
    results = train_at({"resume": CHECKPOINT})
    uninterrupted = json.loads((FIXTURE / "uninterrupted_summary.json").read_text())
    assert results["status"] == "finished"
    assert [record["epoch"] for record in results["training_history"]] == [1, 2, 3]
    for here, there in zip(results["training_history"], uninterrupted["history"], strict=True):
        for key in set(there) - {"seconds", "images_per_second"}:
            # another processor rounds otherwise
            assert here[key] == pytest.approx(there[key], rel=2e-2, abs=1e-4), key


def test_its_caches_are_recognised_and_named(left_behind, capsys):
    assert sorted(entry.kind for entry in entries(left_behind / "cache")) == [
        "logits", "logits", "maps", "maps", "pixels", "pixels", "pixels",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(["cache", "info", "--cache-dir", "cache"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "damaged" not in told
    assert told.count("teacher CifarResNet-8") == 4


def test_its_caches_can_be_verified_and_cleared(left_behind):
    for command in ("verify", "clear"):
        with pytest.raises(SystemExit) as ended:
            main(["cache", command, "--cache-dir", "cache"])
        assert ended.value.code == 0
    assert not entries(left_behind / "cache")
