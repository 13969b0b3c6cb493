"""Frozen parts of the student are left as they are, batch norms included, and the rest is trained."""

from __future__ import annotations

import copy
import json

import pytest
import timm
import torch
from torch import nn

from attention_transfer import ConfigError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.networks.heads import head_names


@pytest.fixture
def settings(settings):
    return {**settings, "epochs": 2, "lr": 0.05}


def student():
    torch.manual_seed(5)
    return create_model("CifarResNet-8", 10)


def changed(before, after):
    return {key for key, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[key])}


@pytest.mark.slow
def test_a_frozen_backbone_stays_and_the_head_is_trained(settings, tmp_path):
    network = student()
    before = copy.deepcopy(network)
    results = train_at({**settings, "freeze": "backbone"}, student=network)
    assert changed(before, results["model"]) == {"linear.weight", "linear.bias"}
    content = read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")
    assert content["training"]["frozen"] == ["conv1", "bn1", "layer1", "layer2", "layer3"]
    assert [len(group["params"]) for group in content["training"]["optimizer"]["param_groups"]] == [2]
    assert "frozen are conv1, bn1, layer1, layer2, layer3: 650 of 75,290 parameters are trained" in read_log(tmp_path)
    assert json.loads((tmp_path / "logs" / "run_summary.json").read_text())["frozen"] == content["training"]["frozen"]


def test_dropout_before_the_head_of_a_frozen_backbone_is_off_as_the_rest_of_it_is(settings):
    torch.manual_seed(5)
    classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 10))
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)
    modes = {name: set() for name, _ in network.named_modules() if name not in ("", "4")}
    for name, seen in modes.items():
        network.get_submodule(name).register_forward_hook(lambda module, *_, seen=seen: seen.add(module.training))
    train_at({**settings, "epochs": 1, "freeze": "backbone"}, student=network)
    assert modes.pop("4.1") == {True, False}
    assert all(seen == {False} for seen in modes.values()), modes


def read_log(folder):
    return (folder / "logs" / "run.log").read_text()


def test_modules_by_name_stay_and_are_in_eval_mode_while_the_rest_trains(settings, teacher):
    network, modes = student(), set()
    before = copy.deepcopy(network)
    network.layer1[0].bn1.register_forward_hook(lambda module, *_: modes.add((network.training, module.training)))
    results = train_at({**settings, "freeze": ["conv1", "layer1"]}, student=network, teacher=teacher)
    different = changed(before, results["model"])
    assert modes == {(True, False), (False, False)}
    assert not [key for key in different if key.startswith(("conv1", "layer1"))]
    rest = {key for key in before.state_dict() if not key.startswith(("conv1", "layer1"))}
    assert different == rest


def test_what_was_frozen_can_be_trained_again_after_the_run(settings):
    network = student()
    network.layer2.requires_grad_(False)
    train_at({**settings, "epochs": 1, "freeze": "layer1"}, student=network)
    frozen = {name.split(".")[0] for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"layer2"}


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["layer1", "layre2"], r"freeze has 'layre2', but CifarResNet has no such module\. Did you mean 'layer2'\? It "
         r"has conv1, bn1, layer1, layer2, layer3, linear, and the modules in them; or freeze='backbone'"),
        ([], "freeze names no module"),
        (["conv1", "bn1", "layer1", "layer2", "layer3", "linear"], "there is nothing to train: freeze leaves no param"),
    ],
)  # fmt: skip
def test_names_are_checked(settings, freeze, message):
    with pytest.raises(ConfigError, match=message):
        train_at({**settings, "freeze": freeze}, student=student())


def test_one_name_need_not_be_in_a_list():
    from attention_transfer import create_at_config

    assert create_at_config(freeze="layer1")["freeze"] == ("layer1",)
    assert create_at_config(freeze=["backbone"])["freeze"] == "backbone"


def test_a_module_without_parameters_is_refused(settings):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(ConfigError, match="freeze has '0', which has no parameters in Sequential"):
        train_at({**settings, "freeze": "0"}, student=network)


@pytest.mark.parametrize(
    ("make", "heads"),
    [
        (lambda: create_model("WideResNet-10-1", 10), ("fc",)),
        (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10), ("head",)),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224", num_classes=10), ("head", "head_dist")),
        (lambda: nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 10, 1), nn.Flatten()), ("1",)),
    ],
)
def test_the_head_is_found(make, heads):
    assert head_names(make(), 10) == heads


@pytest.mark.parametrize(
    ("width", "message"),
    [(10, "of Sequential is the head: 1, 2 could be it"), (9, "no Linear or 1x1 convolution has 11 outputs")],
)
def test_a_head_that_cannot_be_told_is_an_error(settings, width, message):
    last = nn.Linear(width, 10) if width == 10 else nn.Sequential(nn.Linear(width, 11), nn.Flatten())
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, width), last)
    if width == 10:
        with pytest.raises(ConfigError, match=f"freeze is 'backbone', but it is unknown which module {message}"):
            train_at({**settings, "freeze": "backbone"}, student=network)
    else:
        assert head_names(network, 11) == ("2.0",)
        with pytest.raises(ConfigError, match="has 10 outputs"):
            head_names(network, 10)


def test_a_run_goes_on_with_what_it_has_frozen(settings):
    train_at({**settings, "epochs": 1, "freeze": "layer1"}, student=student())
    with pytest.raises(ConfigError, match=r"freeze is \('layer2',\), but .* was trained with \('layer1',\)"):
        train_at({**settings, "freeze": "layer2", "resume": "auto"}, student=student())


def test_freezing_that_cannot_be_meant_is_warned_of(settings, teacher, tmp_path):
    train_at({**settings, "epochs": 1, "model": "CifarResNet-8", "freeze": "backbone"}, teacher=teacher)
    assert "the frozen modules keep random weights: set weights or init_from" in read_log(tmp_path)
    assert "attention transfer changes nothing" in read_log(tmp_path)
