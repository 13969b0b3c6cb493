"""A teacher_model that is a name: pretrained weights as they are spelled, and help with every other spelling."""

from __future__ import annotations

import pytest
import torch

from attention_transfer import TeacherError, load_teacher_model
from attention_transfer.losses.logits.term import check_has_head
from attention_transfer.networks.registry import HeadlessCard, card_of

POSSIBLE = (
    r"Possible are ResNet18:IMAGENET1K_V1, ResNet18:DEFAULT, ResNet50:IMAGENET1K_V1, ResNet50:IMAGENET1K_V2, "
    r"ResNet50:DEFAULT\."
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50", rf"'resnet50', which is not a file; for torchvision's .* write ResNet50:DEFAULT\. {POSSIBLE}"),
        ("ResNet18", "write ResNet18:DEFAULT"),
        ("resnet50.DEFAULT", "write ResNet50:DEFAULT"),
        ("ResNet34:DEFAULT", rf"not a file; .* pretrained weights write torchvision/resnet34\. {POSSIBLE}"),
        ("resnet50:IMAGENET1K_V9", rf"ResNet50 has no weights of this name\. {POSSIBLE}"),
        ("resnet18:", "ResNet18 has no weights of this name"),
        ("vit_base_patch16_224", "write timm/vit_base_patch16_224"),
        ("efficientnet_b0", "write torchvision/efficientnet_b0"),
        ("timm/resnet26q", "timm has no network 'resnet26q'. Near are resnet26"),
        ("torchvision/resnet19", "torchvision has no classification network 'resnet19'. Near are resnet1"),
        ("timm/resnet18.xyz", "'xyz', which timm does not have for resnet18; it has .*a1_in1k"),
        ("torchvision/resnet34:IMAGENET1K_V7", "torchvision does not have for resnet34; it has IMAGENET1K_V1, DEFAULT"),
        ("CifarResNet-56", "CifarResNet-56 is a network without published weights: give the path of a checkpoint"),
        ("wideresnet-40-2", "WideResNet-40-2 is a network without published weights"),
        ("resnt50:DEFAULT", r"Did you mean 'ResNet50:DEFAULT'\?"),
        ("my teacher", rf"'my teacher', which is not a file; give the path of a checkpoint.*{POSSIBLE}$"),
        ("teachers/best.pth", r"^teachers/best\.pth is not a file; give the path of a checkpoint\.$"),
    ],
)
def test_a_name_that_is_no_teacher_is_told_with_the_right_spelling(name, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher_model(name, 10, "cpu")


def test_a_file_wins_over_a_name(tmp_path, monkeypatch):
    from attention_transfer import create_model

    monkeypatch.chdir(tmp_path)
    torch.save(create_model("CifarResNet-8", 3).state_dict(), tmp_path / "ResNet18:DEFAULT")
    assert card_of(load_teacher_model("ResNet18:DEFAULT", device="cpu")).name == "CifarResNet-8"


def test_pretrained_weights_that_are_out_of_reach_are_told_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        TeacherError, match=r"timm's weights resnet18.* teacher_model=PATH and teacher_arch='timm/resnet"
    ):
        load_teacher_model("timm/resnet18", device="cpu")


def test_a_file_of_a_networks_weights_of_a_library_is_read_with_its_name(tmp_path):
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=6).eval()
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, file)
    teacher = load_teacher_model(file, device="cpu", teacher_arch="timm/test_vit")
    assert (card_of(teacher).name, card_of(teacher).num_classes) == ("timm/test_vit", 6)
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(teacher(images), network(images))


def test_a_file_that_is_of_another_network_of_the_library_is_refused(tmp_path):
    import timm

    torch.save(timm.create_model("test_resnet", num_classes=6).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(TeacherError, match=r"teacher_arch is 'timm/test_vit', but .* has other keys or shapes"):
        load_teacher_model(tmp_path / "weights.pth", device="cpu", teacher_arch="timm/test_vit")


def test_a_backbone_without_a_head_is_no_teacher_for_distillation(tmp_path):
    import timm

    network = timm.create_model("test_vit", num_classes=0)
    torch.save(network.state_dict(), tmp_path / "backbone.pth")
    teacher = load_teacher_model(tmp_path / "backbone.pth", device="cpu", teacher_arch="timm/test_vit")
    assert isinstance(card_of(teacher), HeadlessCard)
    with pytest.raises(TeacherError, match=r"train --model timm/test_vit .* --freeze backbone"):
        check_has_head(card_of(teacher))
