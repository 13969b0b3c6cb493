"""A teacher_model that is a name: pretrained weights as they are spelled, and help with every other spelling."""

from __future__ import annotations

import pytest
import torch

from attention_transfer import TeacherError, load_teacher_model
from attention_transfer.networks.registry import card_of

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
        ("torchvision/resnet18", "write ResNet18:DEFAULT"),
        (
            "ResNet34:DEFAULT",
            rf"not a file\. {POSSIBLE} .*torchvision\.models\.get_model\('resnet34', weights='DEFAULT'\)",
        ),
        ("resnet50:IMAGENET1K_V9", rf"ResNet50 has no weights of this name\. {POSSIBLE}"),
        ("resnet18:", "ResNet18 has no weights of this name"),
        ("timm/resnet26d", r"timm\.create_model\('resnet26d', pretrained=True\)"),
        ("vit_base_patch16_224", r"timm\.create_model\('vit_base_patch16_224', pretrained=True\)"),
        ("efficientnet_b0", r"torchvision\.models\.get_model\('efficientnet_b0'"),
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


def test_what_is_advised_for_another_library_can_be_built():
    import timm
    import torchvision

    with torch.device("meta"):
        assert torchvision.models.get_model("resnet34", weights=None) is not None
        assert timm.create_model("resnet26d", pretrained=False) is not None


def test_weights_that_cannot_be_fetched_are_an_error_of_the_teacher_with_the_place_for_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").write_bytes(b"damaged")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(TeacherError, match=r"(?s)could not be loaded.*resnet18-f37072fd\.pth"):
        load_teacher_model("resnet18:default", device="cpu")
