"""Checkpoints: plain data, whole or absent, and refused with a sentence where they do not fit."""

from __future__ import annotations

import ast
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import attention_transfer
from attention_transfer import CheckpointError, create_model, load_model
from attention_transfer.checkpoint import FORMAT, read_checkpoint, read_plain, weights_digest, write_checkpoint
from attention_transfer.seal import LENGTH, MARK, seal

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def content_of(model, card):
    return {
        "card": card,
        "model_state_dict": model.state_dict(),
        "config": {"epochs": 3, "class_names": ("ant", "bee"), "num_classes": 2},
        "epoch": 2,
        "best_accuracy": 0.75,
        "class_names": ["ant", "bee"],
        "training": None,
    }


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create_model("MultiBranchNet", 2).eval()


CARD = {"name": "MultiBranchNet", "num_classes": 2, "class_names": ("ant", "bee")}


def test_a_model_comes_back_as_it_was(tmp_path, network):
    write_checkpoint(tmp_path / "m.pth", content_of(network, CARD))
    loaded = load_model(tmp_path / "m.pth", "cpu")
    assert set(loaded) == {"model", "config", "epoch", "best_accuracy", "best_balanced_accuracy", "class_names"}
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


def test_what_is_no_plain_data_is_refused_before_the_previous_checkpoint_is_touched(tmp_path, network):
    write_checkpoint(tmp_path / "m.pth", content_of(network, CARD))
    for value in (lambda: None, Path("x"), torch.torch_version.TorchVersion("2.6"), nn.Linear(2, 2)):
        training = {"made_with": [1, {"value": value}]}
        kind = type(value).__name__
        with pytest.raises(CheckpointError, match=rf"\['training'\]\['made_with'\]\[1\]\['value'\] is a {kind}"):
            write_checkpoint(tmp_path / "m.pth", {**content_of(network, CARD), "training": training})
    assert read_checkpoint(tmp_path / "m.pth")["training"] is None
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


@pytest.fixture
def whole(tmp_path):
    """The bytes of a small checkpoint, as torch.load may read them."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 40))
    write_checkpoint(tmp_path / "m.pth", content_of(model, None))
    return (tmp_path / "m.pth").read_bytes()


@pytest.fixture
def parses(monkeypatch):
    """How often torch.load was called."""
    calls, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: calls.append(args) or load(*args, **kwargs))
    return calls


def test_a_sealed_checkpoint_is_a_zip_archive_for_every_reader(tmp_path, whole):
    assert whole[-LENGTH:].startswith(MARK)
    content = torch.load(tmp_path / "m.pth", weights_only=True)
    assert content["format"] == FORMAT
    assert set(torch.load(tmp_path / "m.pth", weights_only=True, mmap=True)) == set(content)
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        assert archive.testzip() is None
        assert archive.comment == whole[-LENGTH:]


def test_a_checkpoint_that_is_cut_short_is_refused_unparsed_at_every_length(tmp_path, whole, parses):
    ends = {0, 1, 2, 4, 22, 23, 100, len(whole) // 3, len(whole) // 2}
    ends |= set(range(0, len(whole), len(whole) // 50))
    ends |= set(range(len(whole) - LENGTH - 30, len(whole)))
    for length in sorted(ends):
        (tmp_path / "m.pth").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut short"):
            read_checkpoint(tmp_path / "m.pth")
    (tmp_path / "m.pth").write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "m.pth")
    assert not parses


def test_a_flipped_bit_is_found_wherever_it_is_before_anything_is_parsed(tmp_path, whole, parses):
    step = max(1, len(whole) // 250)
    for position in [*range(0, len(whole), step), *range(len(whole) - LENGTH - 30, len(whole))]:
        for bit in (0, 5, 7):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            (tmp_path / "m.pth").write_bytes(damaged)
            with pytest.raises(CheckpointError, match="damaged"):
                read_checkpoint(tmp_path / "m.pth")
    assert not parses


def test_torch_alone_loads_a_tensor_in_which_a_bit_flipped(tmp_path, whole):
    weight = torch.load(tmp_path / "m.pth", weights_only=True)["model_state_dict"]["1.weight"]
    position = whole.index(weight.numpy().tobytes()) + 100
    damaged = bytearray(whole)
    damaged[position] ^= 0x40
    (tmp_path / "m.pth").write_bytes(damaged)
    loaded = torch.load(tmp_path / "m.pth", weights_only=True)["model_state_dict"]["1.weight"]
    assert (loaded != weight).sum() == 1
    for read in (read_checkpoint, read_plain):
        with pytest.raises(CheckpointError, match="damaged"):
            read(tmp_path / "m.pth")


def test_a_checkpoint_that_lost_its_digest_is_no_teacher_either(tmp_path, whole):
    unsealed = whole[:-LENGTH]
    for content in (unsealed[:-2] + b"\0\0", whole.replace(MARK, MARK.upper())):
        (tmp_path / "m.pth").write_bytes(content)
        assert torch.load(tmp_path / "m.pth", weights_only=True)
        with pytest.raises(CheckpointError, match="damaged"):
            read_plain(tmp_path / "m.pth")


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_whatever_else_a_file_is_ends_in_a_checkpoint_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pth").mkdir()
    archive = io.BytesIO()
    torch.save({"format": FORMAT, "version": 2, "card": Code()}, archive)
    comment = seal(archive)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("a/data.pkl", b"no pickle")
    contents = {
        "empty": b"",
        "zeros": bytes(5000),
        "text": b"not a checkpoint\n" * 10,
        "random": torch.randint(0, 256, (5000,), dtype=torch.uint8).numpy().tobytes(),
        "pickle": pickle.dumps(Code()),
        "deep": b"(" * 100_000 + b".",
        "sealed code": archive.getvalue() + comment,
        "zip": zipped.getvalue(),
        "mark alone": MARK + b"0" * 64,
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.pth").write_bytes(content)
    for path in tmp_path.glob("*.pth"):
        for read in (read_checkpoint, read_plain):
            with pytest.raises(CheckpointError, match=path.name) as raised:
                read(path)
            # torch's own advice
            assert "set to `False`" not in str(raised.value)
    with pytest.raises(CheckpointError, match=r"posix.mkdir.*pickled code may do harm, and is not run"):
        read_checkpoint(tmp_path / "sealed code.pth")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_format_1_is_told_apart(tmp_path, network):
    content = {"format": FORMAT, "version": 1, **content_of(network, CARD)}
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"written in format 1, and .* reads format 2"):
        read_checkpoint(tmp_path / "m.pth")
    assert read_plain(tmp_path / "m.pth")["epoch"] == 2


def test_a_sealed_checkpoint_that_is_malformed_is_refused(tmp_path, network):
    content = content_of(network, CARD)
    for key, bad in [
        ("epoch", "two"), ("model_state_dict", [1]), ("config", None), ("training", 3), ("version", "2"), ("card", 5),
    ]:  # fmt: skip
        write_checkpoint(tmp_path / "m.pth", {**content, key: bad})
        with pytest.raises(CheckpointError, match=f"malformed: '{key}' is a {type(bad).__name__}"):
            load_model(tmp_path / "m.pth")
    del content["epoch"]
    write_checkpoint(tmp_path / "m.pth", content)
    with pytest.raises(CheckpointError, match="malformed: 'epoch' is missing"):
        load_model(tmp_path / "m.pth")


def test_a_sealed_checkpoint_of_an_unknown_network_or_setting_is_refused(tmp_path, network):
    content = content_of(network, CARD)
    for change, sentence in [
        ({"card": {"name": "NoNet", "num_classes": 2, "class_names": None}}, "NoNet"),
        ({"card": {"name": "MultiBranchNet"}}, "its card is"),
        ({"config": {"magic": 3}}, "magic"),
        ({"model_state_dict": OrderedDict()}, "does not fit"),
        ({"model_state_dict": {1: torch.ones(2)}}, "does not fit"),
        ({"model_state_dict": {**network.state_dict(), "fc.weight": 3}}, "does not fit"),
    ]:
        write_checkpoint(tmp_path / "m.pth", {**content, **change})
        with pytest.raises(CheckpointError, match=sentence):
            load_model(tmp_path / "m.pth")


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
