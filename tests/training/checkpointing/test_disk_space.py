"""Whether the files of a run can be written is known before it trains."""

from __future__ import annotations

import logging
import os
from functools import partial

import pytest
import torch

from attention_transfer import create_model
from attention_transfer.checkpoint import write_checkpoint
from attention_transfer.config import Config
from attention_transfer.distributed import Runtime
from attention_transfer.errors import WriteError
from attention_transfer.files import disk_space
from attention_transfer.training.checkpointing.disk_space import (
    check_disk_space,
    checkpoint_bytes,
    warn_of_little_disk_space,
)
from attention_transfer.training.checkpointing.paths import RunPaths
from attention_transfer.training.checkpointing.state import RunState
from attention_transfer.training.optim import make_optimizer, make_scheduler, parameter_groups
from attention_transfer.training.optim.ema import EmaWeights
from attention_transfer.training.optim.optimizers import state_size


@pytest.mark.parametrize("name", ["CifarResNet-8", "MultiBranchNet", "ResNet18"])
def test_a_checkpoint_is_as_large_as_was_said_at_most(tmp_path, name):
    student = create_model(name, 10)
    told = checkpoint_bytes(student)
    config = Config(model=name, num_classes=10)
    optimizer = make_optimizer(config, parameter_groups(student))
    state = RunState(config, student, optimizer, make_scheduler(config, optimizer))
    student(torch.rand(2, 3, 64, 64)).sum().backward()
    state.optimizer.step()
    assert state.complete_epoch({"loss": 1.0}, 0.5, always_best=False)
    assert not state.complete_epoch({"loss": 1.0}, 0.4, always_best=False)
    write_checkpoint(tmp_path / "m.pth", state.to_checkpoint(Runtime(torch.device("cpu"))))
    size = (tmp_path / "m.pth").stat().st_size
    assert size <= told <= 1.25 * size


@pytest.mark.parametrize("name", ["adamw", "adan", "lookahead_lamb", "Rprop"])
def test_so_is_one_of_an_optimizer_with_more_state_and_of_a_run_with_an_average(tmp_path, name):
    student = create_model("CifarResNet-8", 10)
    config = Config(model="CifarResNet-8", num_classes=10, optimizer=name, ema=0.9)
    told = checkpoint_bytes(student, state_size(config), has_ema=True)
    optimizer = make_optimizer(config, parameter_groups(student))
    state = RunState(config, student, optimizer, make_scheduler(config, optimizer), ema=EmaWeights(student, 0.9))
    for _ in range(7):  # Lookahead makes its copy in the sixth
        student(torch.rand(2, 3, 32, 32)).sum().backward()
        state.optimizer.step()
        state.after_update()
    assert state.complete_epoch({"loss": 1.0}, 0.5, always_best=False)
    assert not state.complete_epoch({"loss": 1.0}, 0.4, always_best=False)
    write_checkpoint(tmp_path / "m.pth", state.to_checkpoint(Runtime(torch.device("cpu"))))
    size = (tmp_path / "m.pth").stat().st_size
    assert size <= told <= 1.3 * size


def test_folders_are_made_and_what_killed_runs_left_is_removed(tmp_path):
    save_dir, log_dir = tmp_path / "deep" / "checkpoints", tmp_path / "logs"
    for _ in range(2):
        check_disk_space(str(save_dir), str(log_dir), 10_000)
        assert list(save_dir.iterdir()) == list(log_dir.iterdir()) == []
        (save_dir / ".run_epoch_7.pth.0123abcd.at-draft").touch()
        (log_dir / ".run_summary.json.0123abcd.at-draft").touch()


def test_the_sentence_names_folder_setting_and_bytes(tmp_path):
    (tmp_path / "file").touch()
    folder = str(tmp_path / "folder")
    with pytest.raises(WriteError, match=r"file/logs/summary\.json needs .*set log_dir"):
        check_disk_space(folder, str(tmp_path / "file" / "logs"), 10_000)
    with pytest.raises(WriteError, match=r"file/checkpoint\.pth needs 10,000 bytes.*set save_dir"):
        check_disk_space(str(tmp_path / "file"), folder, 10_000)
    with pytest.raises(WriteError, match=r"save_dir is .*folder.*needs 2,000,000,000,000,000,000 bytes.*bytes free"):
        check_disk_space(folder, folder, 10**18)


def test_a_disk_without_room_for_all_that_is_kept_is_a_warning(tmp_path, caplog):
    paths = RunPaths(Config(experiment_name="run", save_dir=str(tmp_path)))
    free = disk_space(tmp_path).free
    assert free is not None
    # last, best, final, two numbered ones and a draft: six, of which five fit
    warn = partial(warn_of_little_disk_space, paths, (10, 20), int(free / 5.5))
    with caplog.at_level(logging.WARNING):
        warn()
        assert "the 5 checkpoints to come" in caplog.text
        assert os.fspath(tmp_path) in caplog.text
        caplog.clear()
        paths.numbered(10).touch()
        warn()
        assert not caplog.records
