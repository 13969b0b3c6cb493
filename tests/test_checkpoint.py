"""Checkpoints: plain data, whole or absent, and refused with a sentence where they do not fit."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import attention_transfer
from attention_transfer import CheckpointError, create_model, load_model
from attention_transfer.checkpoint import read_checkpoint, weights_digest, write_checkpoint

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def content_of(model, card):
    return {
        "card": card,
        "model_state_dict": model.state_dict(),
        "config": {"epochs": 3, "class_names": ("ant", "bee"), "num_classes": 2},
        "epoch": 2,
        "best_accuracy": 0.75,
        "class_names": ["ant", "bee"],
        "training": {},
    }


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create_model("MultiBranchNet", 2).eval()


CARD = {"name": "MultiBranchNet", "num_classes": 2, "class_names": ("ant", "bee")}


def test_a_model_comes_back_as_it_was(tmp_path, network):
    write_checkpoint(tmp_path / "m.pth", content_of(network, CARD))
    loaded = load_model(tmp_path / "m.pth", "cpu")
    assert set(loaded) == {"model", "config", "epoch", "best_accuracy", "class_names"}
    assert (loaded["epoch"], loaded["best_accuracy"], loaded["class_names"]) == (2, 0.75, ["ant", "bee"])
    assert loaded["config"]["epochs"] == 3
    assert not loaded["model"].training
    assert torch.equal(loaded["model"](IMAGES), network(IMAGES))


def test_a_module_of_the_users_needs_one_of_its_kind(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    write_checkpoint(tmp_path / "m.pth", content_of(model, None))
    with pytest.raises(CheckpointError, match="model="):
        load_model(tmp_path / "m.pth", "cpu")
    again = load_model(tmp_path / "m.pth", "cpu", model=nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))["model"]
    assert weights_digest(again) == weights_digest(model)
    with pytest.raises(CheckpointError, match="does not fit Linear"):
        load_model(tmp_path / "m.pth", "cpu", model=nn.Linear(12, 2))


def test_a_failed_write_leaves_the_previous_checkpoint_and_no_litter(tmp_path, network):
    write_checkpoint(tmp_path / "m.pth", content_of(network, CARD))
    with pytest.raises(Exception, match="pickle"):
        write_checkpoint(tmp_path / "m.pth", {"bad": lambda: None})
    assert read_checkpoint(tmp_path / "m.pth")["epoch"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


def test_a_checkpoint_is_read_without_running_code(tmp_path, network):
    write_checkpoint(tmp_path / "m.pth", content_of(network, CARD))
    assert set(torch.load(tmp_path / "m.pth", weights_only=True)) >= {"format", "version", "model_state_dict"}


def test_a_file_that_is_not_ours_is_refused(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="not a checkpoint of attention-transfer"):
        load_model(tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"nowhere\.pth is not a file"):
        load_model(tmp_path / "nowhere.pth")


def test_a_truncated_checkpoint_is_refused(tmp_path, network):
    write_checkpoint(tmp_path / "m.pth", content_of(network, CARD))
    whole = (tmp_path / "m.pth").read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "m.pth").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_checkpoint(tmp_path / "m.pth")


def test_a_checkpoint_of_a_later_format_asks_for_an_upgrade(tmp_path, network):
    write_checkpoint(tmp_path / "m.pth", {**content_of(network, CARD), "version": 99})
    with pytest.raises(CheckpointError, match="upgrade"):
        read_checkpoint(tmp_path / "m.pth")


def test_the_digest_tells_weights_and_buffers_apart(network):
    twin = create_model("MultiBranchNet", 2)
    twin.load_state_dict(network.state_dict())
    assert weights_digest(twin) == weights_digest(network)
    next(buffer for buffer in twin.buffers() if buffer.is_floating_point()).add_(1)
    assert weights_digest(twin) != weights_digest(network)


def test_nothing_in_the_library_loads_pickled_code():
    package = Path(attention_transfer.__file__).parent
    calls = [
        node
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls
    assert all("weights_only=True" in ast.unparse(call) for call in calls)
