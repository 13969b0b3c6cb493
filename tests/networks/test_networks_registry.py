"""The registry: building by name, pretrained weights, recognising weights, adding a family."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18, resnet50

from attention_transfer.catalogue import NETWORKS
from attention_transfer.errors import ConfigError
from attention_transfer.networks import registry
from attention_transfer.networks.architecture import Architecture
from attention_transfer.networks.libraries import build, without_memory
from attention_transfer.networks.registry import (
    ModelCard,
    card_of,
    create_model,
    recognise,
    register_network,
    taps_of,
)

pytestmark = pytest.mark.slow

NAMES = ["MultiBranchNet", "ResNet18", "ResNet50", "CifarResNet-20", "WideResNet-16-2"]


def shapes_of(model):
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def tiny(num_classes):
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), pool, nn.Linear(8, num_classes))


def tiny_family(name, taps=("1",)):
    return Architecture(name, tiny, taps=taps, head="3", candidates=lambda shapes: [name])


@pytest.fixture
def registry_put_back():
    networks, registered = list(NETWORKS), dict(registry._registered)
    yield
    NETWORKS[:] = networks
    registry._registered.clear()
    registry._registered.update(registered)


def test_a_name_is_found_in_any_case():
    assert card_of(create_model("wideresnet-10-1", num_classes=3)) == ModelCard("WideResNet-10-1", 3)


def test_the_card_is_found_inside_a_wrapper_and_a_copy():
    model = create_model("CifarResNet-8")
    assert card_of(nn.DataParallel(copy.deepcopy(model))) == ModelCard("CifarResNet-8", 10)
    assert taps_of(nn.DataParallel(model)) == ("layer1", "layer2", "layer3")


def test_a_network_of_the_users_own_has_neither_card_nor_taps():
    assert card_of(resnet18()) is None
    assert taps_of(resnet18()) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResNet81", "no network is called 'ResNet81'.*Did you mean 'ResNet18'"),
        ("CifarResNet-21", r"CifarResNet-21: the depth must be 6n \+ 2, as in CifarResNet-20"),
        ("CifarResNet-2", r"the depth must be 6n \+ 2"),
        ("WideResNet-18-2", r"WideResNet-18-2: the depth must be 6n \+ 4, as in WideResNet-16-2"),
        ("WideResNet-16-0", "no network is called 'WideResNet-16-0'.*'WideResNet-16-2'"),
    ],
)
def test_a_name_that_no_network_has_is_refused_with_a_right_one(name, message):
    with pytest.raises(ConfigError, match=message):
        create_model(name)


def test_a_network_without_classes_is_refused():
    with pytest.raises(ConfigError, match="num_classes is 0"):
        create_model("CifarResNet-8", num_classes=0)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A state_dict of torchvision's ResNet18, where torch hub keeps downloaded weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    state = resnet18().state_dict()
    file = tmp_path / "hub" / "checkpoints" / ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    file.parent.mkdir(parents=True)
    torch.save(state, file)
    return state


@pytest.mark.parametrize("weights", ["DEFAULT", "imagenet1k_v1"])
def test_pretrained_weights_are_loaded_by_name(published, weights):
    state = create_model("ResNet18", num_classes=1000, weights=weights).state_dict()
    assert state.keys() == published.keys()
    assert all(torch.equal(state[key], published[key]) for key in published)


def test_pretrained_weights_with_other_classes_keep_all_but_the_head(published, caplog):
    with caplog.at_level("INFO", logger="attention_transfer"):
        state = create_model("ResNet18", num_classes=5, weights="DEFAULT").state_dict()
    assert state["fc.weight"].shape == (5, 512)
    assert all(torch.equal(state[key], published[key]) for key in published if not key.startswith("fc."))
    assert "the head of ResNet18 DEFAULT tells other classes apart, so fc is newly initialised" in caplog.text


def test_without_a_network_the_error_names_the_url_and_the_place_for_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("urllib.request._opener", None)
    with pytest.raises(ConfigError) as caught:
        create_model("ResNet50", weights="DEFAULT")
    assert "https://download.pytorch.org/models/resnet50" in str(caught.value)
    assert str(tmp_path / "hub" / "checkpoints" / "resnet50") in str(caught.value)


def test_a_damaged_file_of_weights_is_an_error_that_names_it(published, tmp_path):
    [file] = (tmp_path / "hub" / "checkpoints").iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=rf"could not be loaded.*{file.name}"):
        create_model("ResNet18", weights="DEFAULT")


def test_weights_that_do_not_exist_are_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"'COCO_V1'.*IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        create_model("ResNet50", weights="COCO_V1")
    with pytest.raises(ConfigError, match="MultiBranchNet has no pretrained weights; ResNet18, ResNet50 have"):
        create_model("MultiBranchNet", weights="DEFAULT")


@pytest.mark.parametrize("name", [*NAMES, "CifarResNet-8", "WideResNet-10-1", "WideResNet-10-3"])
def test_a_network_is_recognised_by_its_weights_alone(name):
    assert recognise(shapes_of(create_model(name, num_classes=6))) == [(name, 6)]


def test_torchvisions_own_networks_are_recognised():
    assert recognise(shapes_of(resnet18())) == [("ResNet18", 1000)]
    assert recognise(shapes_of(resnet50(num_classes=4))) == [("ResNet50", 4)]


def test_a_trained_resnet56_from_elsewhere_is_recognised_and_loads(shared_folder):
    state = torch.load(shared_folder / "weights" / "cifar10-jpeg-resnet56.pth", weights_only=True)
    [(name, num_classes)] = recognise({key: tuple(tensor.shape) for key, tensor in state.items()})
    assert (name, num_classes) == ("CifarResNet-56", 10)
    create_model(name, num_classes).load_state_dict(state)


def test_foreign_and_incomplete_weights_are_not_recognised():
    shapes = shapes_of(create_model("CifarResNet-8"))
    assert recognise(shapes_of(tiny(4))) == []
    assert recognise({}) == []
    assert recognise(shapes | {"extra": (1,)}) == []
    assert recognise({key: shape for key, shape in shapes.items() if key != "bn1.bias"}) == []
    assert recognise(shapes | {"linear.weight": ()}) == []


def test_recognising_weights_draws_no_random_number():
    shapes = shapes_of(create_model("WideResNet-10-1"))
    before = torch.get_rng_state()
    recognise(shapes)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_fit_two_networks_give_both(registry_put_back):
    for name in ("TinyOne", "TinyTwo"):
        register_network(tiny_family(name), example=name, summary="one convolution")
    assert recognise(shapes_of(tiny(4))) == [("TinyOne", 4), ("TinyTwo", 4)]


def test_a_family_that_a_user_adds_is_built_by_name(registry_put_back):
    register_network(tiny_family("Tiny"), example="Tiny", summary="one convolution")
    model = create_model("TINY", num_classes=3)
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 3)
    assert taps_of(model) == ("1",)


@pytest.mark.parametrize(
    ("family", "example", "message"),
    [
        (tiny_family("ResNet18"), "ResNet18", "'ResNet18' is taken by the registered network ResNet18"),
        (tiny_family("cifarresnet-9"), "cifarresnet-9", "taken by the registered network CifarResNet-20"),
        (tiny_family("Tiny"), "Small", "name_pattern 'Tiny' does not match its example 'Small'"),
        (tiny_family("Tiny", taps=("stage1",)), "Tiny", "Tiny has no module 'stage1'"),
    ],
)
def test_a_family_that_cannot_be_registered_is_refused(registry_put_back, family, example, message):
    with pytest.raises(ConfigError, match=message):
        register_network(family, example=example, summary="")


def test_a_card_of_a_family_that_is_no_longer_registered_is_an_error(registry_put_back):
    register_network(tiny_family("Tiny"), example="Tiny", summary="one convolution")
    model = create_model("Tiny")
    NETWORKS.pop()
    with pytest.raises(ConfigError, match="'Tiny' is not registered here; call register_network"):
        taps_of(model)


def test_looking_at_a_networks_shapes_draws_nothing_at_random():
    """RegNet computes with its weights while it is built, so that it cannot be built without memory."""
    state = torch.get_rng_state()
    network = without_memory(lambda: build("torchvision/regnet_x_400mf", 10))
    assert torch.equal(torch.get_rng_state(), state)
    assert network.fc.out_features == 10
