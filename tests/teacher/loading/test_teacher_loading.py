"""Any trained network as a teacher: recognised, loaded strictly, frozen; or refused with a remedy."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from attention_transfer import TeacherError, create_model, load_teacher_model, register_network
from attention_transfer.networks import registry
from attention_transfer.networks.architecture import Architecture
from attention_transfer.networks.registry import card_of

pytestmark = pytest.mark.slow

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return create_model("ResNet18", 7).eval()


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_are_recognised_bare_or_wrapped_with_any_prefix(tmp_path, resnet, key, prefix):
    weights = {prefix + name: tensor for name, tensor in resnet.state_dict().items()}
    torch.save(weights if key is None else {key: weights, "epoch": 3}, tmp_path / "t.pth")
    teacher = load_teacher_model(tmp_path / "t.pth", 7, "cpu")
    assert card_of(teacher).name == "ResNet18"
    assert torch.equal(teacher(IMAGES), resnet(IMAGES))


@pytest.mark.parametrize(
    "name",
    [
        "MultiBranchNet",
        "ResNet18",
        "ResNet50",
        "CifarResNet-20",
        "CifarResNet-32",
        "WideResNet-16-1",
        "WideResNet-10-2",
    ],
)
def test_every_network_is_recognised_with_its_own_head(tmp_path, name):
    model = create_model(name, 5)
    torch.save(model.state_dict(), tmp_path / "t.pth")
    teacher = load_teacher_model(tmp_path / "t.pth", 10, "cpu")
    assert (card_of(teacher).name, card_of(teacher).num_classes) == (name, 5)


def test_a_teacher_is_frozen_and_in_eval_mode(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "t.pth")
    teacher = load_teacher_model(tmp_path / "t.pth", 7, "cpu")
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_safetensors_are_taken_too(tmp_path, resnet):
    from safetensors.torch import save_file

    save_file(resnet.state_dict(), tmp_path / "t.safetensors")
    assert torch.equal(load_teacher_model(tmp_path / "t.safetensors", 7, "cpu")(IMAGES), resnet(IMAGES))


def test_another_number_of_classes_is_logged(tmp_path, resnet, caplog):
    torch.save(resnet.state_dict(), tmp_path / "t.pth")
    with caplog.at_level(logging.INFO, "attention_transfer"):
        load_teacher_model(tmp_path / "t.pth", 3, "cpu")
    assert "7 classes apart and the student 3" in caplog.text


def test_weights_of_an_unknown_network_are_refused_with_what_to_do(tmp_path):
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "t.pth")
    with pytest.raises(TeacherError, match=r"fits no registered network.*weight, bias.*register_network"):
        load_teacher_model(tmp_path / "t.pth", 4, "cpu")


def test_a_missing_tensor_makes_weights_unknown(tmp_path, resnet):
    weights = resnet.state_dict()
    del weights["layer4.1.bn2.bias"]
    torch.save(weights, tmp_path / "t.pth")
    with pytest.raises(TeacherError, match="fits no registered network"):
        load_teacher_model(tmp_path / "t.pth", 7, "cpu")


def test_a_pickled_module_is_refused_with_how_to_save_it_again(tmp_path, resnet):
    torch.save(resnet, tmp_path / "t.pth")
    with pytest.raises(TeacherError, match=r"pickled code.*state_dict\(\)"):
        load_teacher_model(tmp_path / "t.pth", 7, "cpu")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "t.pth")
    with pytest.raises(TeacherError, match="no state_dict"):
        load_teacher_model(tmp_path / "t.pth", 7, "cpu")


def test_a_missing_and_a_damaged_file_are_named(tmp_path):
    with pytest.raises(TeacherError, match=r"nowhere\.pth is not a file"):
        load_teacher_model(tmp_path / "nowhere.pth", 7, "cpu")
    (tmp_path / "t.pth").write_bytes(b"not a checkpoint at all")
    with pytest.raises(TeacherError, match=r"t\.pth cannot be read"):
        load_teacher_model(tmp_path / "t.pth", 7, "cpu")


def small(num_classes: int) -> nn.Module:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), pool, nn.Linear(8, num_classes))


@pytest.fixture
def two_alike(monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    before = len(registry.NETWORKS)
    for name in ("SmallRelu", "SmallToo"):
        family = Architecture(name, small, taps=("1",), head="3", candidates=lambda shapes, name=name: [name])
        register_network(family, example=name, summary="a test's own")
    yield
    del registry.NETWORKS[before:]


def test_ambiguous_weights_list_the_candidates_and_the_key(tmp_path, two_alike):
    torch.save(small(4).state_dict(), tmp_path / "t.pth")
    with pytest.raises(TeacherError, match=r"SmallRelu, SmallToo.*teacher_arch"):
        load_teacher_model(tmp_path / "t.pth", 4, "cpu")
    teacher = load_teacher_model(tmp_path / "t.pth", 4, "cpu", teacher_arch="smalltoo")
    assert card_of(teacher).name == "SmallToo"


def test_a_teacher_arch_that_does_not_fit_is_an_error_with_the_one_that_does(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "t.pth")
    with pytest.raises(TeacherError, match=r"teacher_arch is 'ResNet50'.*fits ResNet18"):
        load_teacher_model(tmp_path / "t.pth", 7, "cpu", teacher_arch="ResNet50")


def test_a_teacher_arch_that_contradicts_a_checkpoint_of_ours_is_an_error(tmp_path, resnet):
    from attention_transfer.checkpoint import write_checkpoint

    card = {"name": "ResNet18", "num_classes": 7, "class_names": None}
    write_checkpoint(tmp_path / "t.pth", {"card": card, "model_state_dict": resnet.state_dict()})
    assert card_of(load_teacher_model(tmp_path / "t.pth", 7, "cpu", teacher_arch="resnet18")).name == "ResNet18"
    with pytest.raises(TeacherError, match="holds a ResNet18"):
        load_teacher_model(tmp_path / "t.pth", 7, "cpu", teacher_arch="ResNet50")


def test_pretrained_weights_are_a_teacher_by_name(tmp_path, monkeypatch):
    from torchvision.models import ResNet18_Weights, resnet18

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    weights = resnet18().state_dict()
    torch.save(weights, folder / ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    teacher = load_teacher_model("ResNet18:IMAGENET1K_V1", 10, "cpu")
    assert card_of(teacher).num_classes == 1000
    assert torch.equal(teacher.state_dict()["fc.weight"], weights["fc.weight"])


def test_the_resnet56_at_hand_is_recognised_and_right(shared_folder):
    teacher = load_teacher_model(shared_folder / "weights" / "cifar10-jpeg-resnet56.pth", 10, "cpu")
    assert card_of(teacher).name == "CifarResNet-56"


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/resnet18", "ResNet50:DEFAULT"])
@pytest.mark.parametrize("setting", [{"teacher_arch": "ResNet18"}, {"teacher_key": "ema"}])
def test_what_says_what_is_in_a_file_is_refused_beside_a_name(name, setting):
    with pytest.raises(TeacherError, match=rf"{next(iter(setting))} is .*{name}.* by name and no file"):
        load_teacher_model(name, 10, "cpu", **setting)
