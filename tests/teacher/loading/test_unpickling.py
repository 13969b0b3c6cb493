"""What a pickled file may hold: settings, numbers and paths are read; code is refused, and nothing of it runs."""

from __future__ import annotations

import argparse
import builtins
import collections
import datetime
import operator
import os
import pathlib
import pickle
import subprocess
import tarfile
import types

import numpy as np
import pytest
import torch
from torch import nn

from attention_transfer import TeacherError, create_model, load_teacher_model
from attention_transfer.checkpoint import read_plain
from attention_transfer.errors import CheckpointError
from attention_transfer.networks.registry import card_of
from attention_transfer.unpickling import ALLOWED, NumberArray

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return create_model("CifarResNet-8", 3).eval()


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def save(content, path, is_zip=True):
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


@FORMATS
def test_what_training_scripts_put_beside_the_weights_is_read(tmp_path, network, is_zip):
    content = {
        "model": network.state_dict(),
        "args": argparse.Namespace(
            lr=0.1, output=pathlib.PurePosixPath("/runs/a"), data=pathlib.PureWindowsPath("C:/x")
        ),
        "options": types.SimpleNamespace(momentum=0.9),
        "best_acc": np.float64(91.5),
        "best_epoch": np.int64(7),
        "loss": np.float32(0.5),
        "is_best": np.bool_(True),
        "name": np.str_("run"),
        "no name": np.str_(""),
        "confusion": np.arange(6).reshape(2, 3),
        "by column": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big endian": np.array([1, 2], ">i4"),
        "numpy random": np.random.RandomState(0).get_state(),
        "history": collections.defaultdict(list, {"acc": [1.0, 2.0]}),
        "when": datetime.datetime(2026, 1, 2),
        "took": datetime.timedelta(hours=1),
        "frozen": frozenset([1, 2]),
        "torch": torch.__version__,
    }
    read = read_plain(save(content, tmp_path / "t.pth", is_zip))
    assert vars(read["args"]) == {"lr": 0.1, "output": "/runs/a", "data": read["args"].data}
    assert vars(read["options"]) == {"momentum": 0.9}
    plain = {
        key: read[key] for key in ("best_acc", "best_epoch", "loss", "is_best", "name", "no name", "history", "frozen")
    }
    assert plain == {
        "best_acc": 91.5, "best_epoch": 7, "loss": 0.5, "is_best": True, "name": "run", "no name": "",
        "history": {"acc": [1.0, 2.0]}, "frozen": {1, 2},
    }  # fmt: skip
    assert type(read["best_acc"]) is float
    for key in ("confusion", "by column", "big endian"):
        assert np.array_equal(read[key].array, content[key])
    assert np.array_equal(read["numpy random"][1].array, content["numpy random"][1])
    assert torch.equal(read["model"]["conv1.weight"], network.state_dict()["conv1.weight"])


def test_settings_of_libraries_that_are_not_installed_are_read(tmp_path, network, monkeypatch):
    module = types.ModuleType("easydict")
    module.EasyDict = type("EasyDict", (dict,), {"__module__": "easydict"})
    monkeypatch.setitem(__import__("sys").modules, "easydict", module)
    save({"state_dict": network.state_dict(), "cfg": module.EasyDict(lr=0.1)}, tmp_path / "t.pth")
    monkeypatch.undo()
    assert read_plain(tmp_path / "t.pth")["cfg"] == {"lr": 0.1}


def harm(mark):
    """What a hostile file may call; each would leave `mark` behind."""
    command, code = f"touch {mark}", f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, command),
        "subprocess": Call(subprocess.Popen, ["touch", str(mark)]),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "open": Call(builtins.open, str(mark), "w"),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "attrgetter": Call(operator.attrgetter, "system"),
        "as a factory": Call(collections.defaultdict, os.system),
        "mapped": Call(list, Call(map, os.system, [command])),
        "in the state of a Namespace": Call(argparse.Namespace, state={"run": Call(os.system, command)}),
        "as a number's bytes": Call(np.float64(1).__reduce__()[0], np.dtype("f8"), Call(os.system, command)),
        "in a path": Call(pathlib.PurePosixPath, Call(os.system, command)),
    }


HARM = sorted(harm("mark"))


@FORMATS
@pytest.mark.parametrize("kind", HARM)
def test_a_hostile_file_is_refused_and_nothing_of_it_runs(tmp_path, network, kind, is_zip):
    mark = tmp_path / "mark"
    save({"state_dict": {**network.state_dict(), "x": harm(mark)[kind]}}, tmp_path / "t.pth", is_zip)
    with pytest.raises(CheckpointError, match=r"pickle"):
        read_plain(tmp_path / "t.pth")
    with pytest.raises(TeacherError):
        load_teacher_model(tmp_path / "t.pth", device="cpu")
    assert not mark.exists()


def test_the_payload_of_the_test_above_would_run(tmp_path):
    torch.save(harm(tmp_path / "mark")["os.system"], tmp_path / "t.pth")
    torch.load(tmp_path / "t.pth", weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", ["os.system", "eval"])
def test_no_line_that_would_run_it_is_advised_for_a_file_that_calls_commands(tmp_path, network, kind):
    save({"state_dict": network.state_dict(), "x": harm(tmp_path / "mark")[kind]}, tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match="asks to call") as raised:
        read_plain(tmp_path / "t.pth")
    assert "torch.save" not in str(raised.value)


def test_a_hostile_plain_pickle_and_a_hostile_archive_are_refused_and_nothing_of_them_runs(tmp_path):
    mark = tmp_path / "mark"
    content = pickle.dumps({"state_dict": harm(mark)["os.system"]}, 2)
    (tmp_path / "plain.pth").write_bytes(content)
    with tarfile.open(tmp_path / "tar.pth", "w") as archive:
        (tmp_path / "pickle").write_bytes(content)
        archive.add(tmp_path / "pickle", "pickle")
        for name in ("storages", "tensors", "sys_info"):
            (tmp_path / name).write_bytes(pickle.dumps(0, 2))
            archive.add(tmp_path / name, name)
    for name in ("plain.pth", "tar.pth"):
        with pytest.raises(CheckpointError):
            read_plain(tmp_path / name)
    assert not mark.exists()


def dtype_with(*state):
    return Call(np.dtype, "V8", False, True, state=state)


SCALAR, RECONSTRUCT = np.float64(1).__reduce__()[0], np.arange(2).__reduce__()[0]
CHAINS = {
    "objects for numbers": Call(np.dtype, "O8", False, True),
    "a record that hides objects": dtype_with(3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0),
    "records by state": Call(
        np.dtype, "f8", False, True, state=(3, "<", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 1, 0)
    ),
    "a number of too many bytes": Call(SCALAR, np.dtype("f8"), bytes(16)),
    "a number of too few bytes": Call(SCALAR, np.dtype("f8"), bytes(4)),
    "a number of no type": Call(SCALAR, "f8", bytes(8)),
    "an array larger than its bytes": Call(
        RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (2**40,), np.dtype("f8"), False, bytes(8))
    ),
    "an array of negative size": Call(
        RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (-1,), np.dtype("f8"), False, bytes(8))
    ),
    "an array of another class": Call(RECONSTRUCT, dict, (0,), b"b"),
    "another class by attribute": Call(argparse.Namespace, state={"__class__": dict}),
    "a method by attribute": Call(argparse.Namespace, state={"__setstate__": collections.OrderedDict}),
    "attributes that are no dict": Call(argparse.Namespace, state=[1]),
    "a Namespace with arguments": Call(argparse.Namespace, 1),
    "a type that is called": Call(list, "abc"),
    "many bytes": Call(bytes, 2**40),
}


@FORMATS
@pytest.mark.parametrize("kind", CHAINS)
def test_calls_of_allowed_types_that_are_not_what_pickle_writes_are_refused(tmp_path, network, kind, is_zip):
    save({"state_dict": network.state_dict(), "x": CHAINS[kind]}, tmp_path / "t.pth", is_zip)
    with pytest.raises(CheckpointError):
        read_plain(tmp_path / "t.pth")


def test_an_array_that_was_never_filled_is_empty_handed_and_not_raw_memory(tmp_path):
    save({"x": Call(RECONSTRUCT, np.ndarray, (10**6,), b"b")}, tmp_path / "t.pth")
    read = read_plain(tmp_path / "t.pth")["x"]
    assert type(read) is NumberArray
    assert not hasattr(read, "array")


def test_no_function_of_another_library_is_called_for_what_is_allowed():
    for entry in ALLOWED:
        library = entry.stand_in.__module__.partition(".")[0]
        assert library in ("attention_transfer", "builtins", "collections"), entry
        assert entry.reason


class Unknown:
    """A class of a training script."""


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


def advice(error):
    text = str(error.value)
    assert "If you trust the file, save its weights anew" in text
    return text[text.index("import ") :] if "torch.save" in text else pytest.fail(text)


REFUSED = {
    "a whole network": lambda model: model,
    "a network in a dict": lambda model: {"epoch": 3, "model": model},
    "a network in a wrapper": lambda model: {"net": Wrapper(model)},
    "an unknown class beside weights": lambda model: {"cfg": Unknown(), "state_dict": model.state_dict()},
    "an unknown class among weights": lambda model: {**model.state_dict(), "cfg": Unknown()},
    "an unknown class deep inside": lambda model: {"a": {"cfg": Unknown(), "weights": model.state_dict()}},
    "averaged weights, too": lambda model: {"cfg": Unknown(), "model_ema": model.state_dict(), "model": {}},
    "an array of objects": lambda model: {"names": np.array([{}], dtype=object), "net": model.state_dict()},
}


@FORMATS
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore:.*source code of class")
def test_the_advice_for_a_refused_file_works_for_that_very_file(tmp_path, network, monkeypatch, kind, is_zip):
    monkeypatch.chdir(tmp_path)
    save(REFUSED[kind](network), tmp_path / "it's a teacher.pth", is_zip)
    with pytest.raises(TeacherError) as raised:
        load_teacher_model("it's a teacher.pth", device="cpu")
    exec(advice(raised))
    teacher = load_teacher_model("weights.pth", device="cpu")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(teacher(images), network(images))


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_the_advice_works_for_plain_pickles_other_protocols_and_torchscript(tmp_path, network, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.dump({"net": network.state_dict()}, (tmp_path / "plain.pth").open("wb"))
    torch.save({"net": network.state_dict()}, tmp_path / "protocol.pth", pickle_protocol=4)
    torch.jit.trace(network, torch.rand(1, 3, 32, 32)).save(tmp_path / "script.pth")
    for name in ("plain.pth", "protocol.pth", "script.pth"):
        with pytest.raises(TeacherError) as raised:
            load_teacher_model(name, device="cpu")
        exec(advice(raised))
        assert card_of(load_teacher_model("weights.pth", device="cpu")).name == "CifarResNet-8"
        (tmp_path / "weights.pth").unlink()


def test_the_error_names_the_type_that_is_not_read(tmp_path, network):
    save({"cfg": Unknown(), "state_dict": network.state_dict()}, tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match=r"pickled code \(\S*test_unpickling\.Unknown\)"):
        read_plain(tmp_path / "t.pth")
    save({"cfg": Unknown()}, tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match="No weights of a network can be seen in it"):
        read_plain(tmp_path / "t.pth")


def test_torchs_own_list_of_allowed_types_is_as_the_user_left_it(tmp_path, network):
    save({"model": network.state_dict(), "acc": np.float64(1), "u": Unknown()}, tmp_path / "t.pth")
    before = torch.serialization.get_safe_globals()
    with pytest.raises(CheckpointError):
        read_plain(tmp_path / "t.pth")
    assert set(torch.serialization.get_safe_globals()) == set(before)
    with torch.serialization.safe_globals([Unknown, np.dtype, SCALAR]):
        theirs = set(torch.serialization.get_safe_globals())
        assert type(read_plain(tmp_path / "t.pth")["u"]) is Unknown
        assert set(torch.serialization.get_safe_globals()) == theirs
