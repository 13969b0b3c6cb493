"""A head that is new on a pretrained backbone is named, and begins small whatever the number of classes."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import timm
import torch
from timm.models import _registry
from torchvision import models

from attention_transfer import create_model
from attention_transfer.config import resolve_config
from attention_transfer.networks.heads import head_names
from attention_transfer.teacher.library import pretrained_of_library
from attention_transfer.training.setup.start.initial_weights import load_initial_weights

EFFICIENT = "test_efficientnet"
CLASSES = 2


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Puts weights of a timm network where timm looks for them: a file, with or without its head."""

    def publish(classes):
        network = timm.create_model(EFFICIENT, num_classes=classes)
        torch.save(network.state_dict(), tmp_path / "published.pth")
        config = timm.get_pretrained_cfg(EFFICIENT)
        own = dataclasses.replace(config, file=str(tmp_path / "published.pth"), num_classes=classes, hf_hub_id=None)
        monkeypatch.setitem(_registry._model_pretrained_cfgs, EFFICIENT, own)
        return network.state_dict()

    return publish


def assert_begins_small(network, name):
    """Within 1 / sqrt(inputs), as torch's Linear is, and not all zero."""
    [head] = head_names(network, CLASSES)
    weight = network.get_submodule(head).weight
    bound = weight[0].numel() ** -0.5
    assert weight.shape[0] == CLASSES
    assert 0.5 * bound < weight.abs().max() <= bound, name


@pytest.mark.parametrize(
    ("classes", "why"), [(1000, "the head tells other classes apart"), (0, "the weights have no head")]
)
def test_a_new_head_on_timms_weights_is_named_and_begins_small(published, caplog, classes, why):
    state = published(classes)
    with caplog.at_level(logging.INFO, "attention_transfer"):
        network = create_model("timm/test_efficientnet", CLASSES, weights="DEFAULT")
    [line] = [record.getMessage() for record in caplog.records if "newly initialised" in record.getMessage()]
    assert line.startswith(f"timm/test_efficientnet: {why}, so classifier is newly initialised for 2 classes")
    assert_begins_small(network, "test_efficientnet")
    assert torch.equal(network.state_dict()["conv_stem.weight"], state["conv_stem.weight"])


def test_a_head_that_fits_is_kept_and_a_teacher_without_one_has_none_that_is_new(published, caplog):
    state = published(1000)
    with caplog.at_level(logging.INFO, "attention_transfer"):
        network = create_model("timm/test_efficientnet", 1000, weights="DEFAULT")
        published(0)
        teacher = pretrained_of_library("timm/test_efficientnet")
    assert torch.equal(network.classifier.weight, state["classifier.weight"])
    assert not teacher.classifier.weight.any()
    assert "newly initialised" not in caplog.text


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_a_new_head_on_torchvisions_weights_is_named_and_begins_small(tmp_path, monkeypatch, caplog, name):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / models.get_model_weights(name).DEFAULT.url.rsplit("/", 1)[-1]
    file.parent.mkdir(parents=True)
    torch.save(models.get_model(name).state_dict(), file)
    with caplog.at_level(logging.INFO, "attention_transfer"):
        network = create_model(f"torchvision/{name}", CLASSES, weights="DEFAULT")
    assert "so classifier.1 is newly initialised for 2 classes" in caplog.text
    assert_begins_small(network, name)


def test_a_new_head_on_the_weights_of_a_file_is_named_and_begins_small(tmp_path, caplog):
    torch.save(timm.create_model("test_efficientnet", num_classes=7).state_dict(), tmp_path / "weights.pth")
    student = create_model("timm/test_efficientnet", CLASSES)
    config = resolve_config({"init_from": str(tmp_path / "weights.pth"), "num_classes": CLASSES})
    with caplog.at_level(logging.INFO, "attention_transfer"):
        load_initial_weights(student, config, config.init_from)
    assert "its head classifier is new: " in caplog.text
    assert "it begins with torch's own initial weights" in caplog.text
    assert_begins_small(student, "test_efficientnet")


def test_without_weights_a_network_begins_as_its_library_has_it():
    torch.manual_seed(0)
    theirs = timm.create_model("test_efficientnet", num_classes=CLASSES)
    torch.manual_seed(0)
    ours = create_model("timm/test_efficientnet", CLASSES)
    assert torch.equal(ours.classifier.weight, theirs.classifier.weight)
