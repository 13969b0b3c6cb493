"""init_from: a new run begins with the weights of any checkpoint, and its head fits its own classes."""

from __future__ import annotations

import json

import pytest
import torch
from support.runs import assert_same_weights, without_clock
from torch import nn

from attention_transfer import CheckpointError, ConfigError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.config import resolve_config
from attention_transfer.networks.registry import ModelCard
from attention_transfer.training.setup.start.initial_weights import load_initial_weights

NAME = "CifarResNet-8"


@pytest.fixture
def settings(settings):
    return {**settings, "model": NAME, "lr": 1e-12, "momentum": 0.0, "weight_decay": 0.0}


def network(classes=10, seed=3, name=NAME, names=None):
    torch.manual_seed(seed)
    made = create_model(name, classes)
    made.card = ModelCard(name, classes, names)
    return made


def load(student, path, **settings):
    config = resolve_config({"init_from": str(path), "num_classes": 10, **settings})
    load_initial_weights(student, config, config.init_from)
    return student


def split(state):
    """The tensors without those of the head, and the head's."""
    head = {key: value for key, value in state.items() if key.startswith("linear.")}
    return {key: value for key, value in state.items() if key not in head}, head


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.slow
def test_a_new_run_begins_with_the_weights_of_an_earlier_one(settings, tmp_path):
    earlier = train_at({**settings, "lr": 0.05, "experiment_name": "earlier"})
    path = tmp_path / "checkpoints" / "earlier_best.pth"
    run = {**settings, "init_from": str(path), "seed": 7}
    results = train_at(run)
    assert (len(results["training_history"]), results["config"]["init_from"]) == (1, str(path))
    for key, value in earlier["model"].named_parameters():
        torch.testing.assert_close(dict(results["model"].named_parameters())[key], value, rtol=0, atol=1e-9)
    log = (tmp_path / "logs" / "run.log").read_text()
    assert f"the student begins with the weights of {path}; its head, too" in log
    assert read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["config"]["init_from"] == str(path)


@pytest.mark.slow
def test_without_the_setting_the_weights_are_those_of_the_seed(settings):
    assert_same_weights(train_at(settings)["model"], train_at({**settings, "experiment_name": "two"})["model"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        lambda state: {"model": {key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}},
    ],
    ids=["bare", "prefixed", "without counters"],
)
@pytest.mark.parametrize("is_named", [True, False])
def test_files_of_other_scripts_are_read_as_a_teachers_are(tmp_path, wrap, is_named):
    source, student = network(seed=1), network(seed=2)
    if not is_named:
        del student.card
    torch.save(wrap(source.state_dict()), tmp_path / "weights.pth")
    load(student, tmp_path / "weights.pth")
    assert_equal(student.state_dict(), source.state_dict())


def test_a_file_with_a_head_of_another_name_is_read(tmp_path):
    source, student = network(seed=1), network(seed=2)
    renamed = {key.replace("linear.", "fc."): value for key, value in source.state_dict().items()}
    torch.save(renamed, tmp_path / "weights.pth")
    load(student, tmp_path / "weights.pth")
    assert_equal(student.state_dict(), source.state_dict())


@pytest.mark.parametrize(("classes", "why"), [(4, "10"), (None, "the file has none that fits")])
def test_the_head_is_new_where_the_file_has_another_or_none_and_this_is_said(tmp_path, caplog, classes, why):
    source, student = network(classes or 1, seed=1), network(seed=2)
    body, _ = split(source.state_dict())
    torch.save(source.state_dict() if classes else body, tmp_path / "weights.pth")
    before = split(network(seed=2).state_dict())[1]
    with caplog.at_level("INFO", logger="attention_transfer"):
        load(student, tmp_path / "weights.pth")
    assert_equal(split(student.state_dict())[0], body)
    assert_equal(split(student.state_dict())[1], before)
    assert "its head linear is new: " in caplog.text
    assert why in caplog.text


def checkpoint_of(settings, tmp_path, folder, **changes):
    """A checkpoint of a run on the classes of a folder."""
    train_at({**settings, "data_dir": folder, "lr": 0.05, "experiment_name": "earlier", **changes})
    return tmp_path / "checkpoints" / "earlier_last.pth"


@pytest.mark.parametrize(
    ("names", "rows"), [(("c", "a", "b"), [2, 0, 1]), (("a", "c"), [0, 2]), (("a", "b", "c"), [0, 1, 2])]
)
def test_the_head_is_matched_by_the_names_of_the_classes(settings, image_folder, tmp_path, names, rows):
    folder = str(image_folder({"a": 6, "b": 6, "c": 6}))
    path = checkpoint_of(settings, tmp_path, folder, image_size=8)
    earlier = read_checkpoint(path)["model_state_dict"]
    student = load(network(len(names), seed=2), path, num_classes=len(names), class_names=names)
    assert_equal(split(student.state_dict())[0], split(earlier)[0])
    assert torch.equal(student.linear.weight, earlier["linear.weight"][rows])
    assert torch.equal(student.linear.bias, earlier["linear.bias"][rows])


def test_a_class_that_the_file_does_not_know_makes_a_new_head(settings, image_folder, tmp_path, caplog):
    path = checkpoint_of(settings, tmp_path, str(image_folder({"a": 6, "b": 6})), image_size=8)
    with caplog.at_level("INFO", logger="attention_transfer"):
        student = load(network(2, seed=2), path, num_classes=2, class_names=("a", "d"))
    assert torch.equal(student.linear.weight, network(2, seed=2).linear.weight)
    assert "its head linear is new: the student has the classes a, d" in caplog.text


def test_another_network_is_an_error_that_names_both(settings, image_folder, tmp_path):
    path = checkpoint_of(settings, tmp_path, settings["data_dir"])
    with pytest.raises(CheckpointError, match=f"init_from: .* holds a {NAME}, but the student is a ResNet18; set mod"):
        train_at({**settings, "model": "ResNet18", "init_from": str(path)})
    torch.save(network(name="CifarResNet-14").state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"init_from: .*other.pth does not fit the student, a CifarResNet-8"):
        load(network(), tmp_path / "other.pth")
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    with pytest.raises(CheckpointError, match=r"init_from: .*other.pth does not fit Sequential"):
        load(module, tmp_path / "other.pth")


def test_what_cannot_be_meant_is_refused(settings, tmp_path):
    with pytest.raises(CheckpointError, match=r"init_from: nowhere.pth is not a file"):
        train_at({**settings, "init_from": "nowhere.pth"})
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=r"weights is 'DEFAULT' and init_from .*weights.pth'"):
        train_at({**settings, "model": "ResNet18", "weights": "DEFAULT", "init_from": str(tmp_path / "weights.pth")})
    torch.save({"a": network().state_dict(), "b": network().state_dict()}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"several networks: a, b; save those that are meant in a file"):
        load(network(), tmp_path / "two.pth")


@pytest.mark.slow
def test_resume_wins_over_it_and_says_so(settings, tmp_path):
    torch.save(network(seed=1).state_dict(), tmp_path / "weights.pth")
    run = {**settings, "lr": 0.05, "init_from": str(tmp_path / "weights.pth"), "epochs": 2, "save_freq": 1}
    whole = train_at({**run, "experiment_name": "whole"})
    train_at({**run, "epochs": 1, "resume": "auto"})
    (tmp_path / "weights.pth").unlink()
    resumed = train_at({**run, "resume": "auto"})
    last = tmp_path / "checkpoints" / "run_best.pth"
    assert "init_from is not read: the run goes on from" in (tmp_path / "logs" / "run.log").read_text(), last
    assert without_clock(resumed["training_history"]) == without_clock(whole["training_history"])
    assert_same_weights(resumed["model"], whole["model"])


def test_a_linear_head_is_trained_on_a_backbone_without_one(settings, tmp_path):
    body, _ = split(network(seed=1).state_dict())
    torch.save({"teacher": {f"backbone.{key}": value for key, value in body.items()}}, tmp_path / "headless.pth")
    results = train_at({**settings, "lr": 0.05, "init_from": str(tmp_path / "headless.pth"), "freeze": "backbone"})
    trained = results["model"].state_dict()
    assert_equal(split(trained)[0], body)
    assert "random weights" not in (tmp_path / "logs" / "run.log").read_text()
    assert json.loads((tmp_path / "logs" / "run_summary.json").read_text())["config"]["freeze"] == "backbone"
