"""`attention-transfer layers`: candidates, choice, readouts, sizes, and pairs with a teacher."""

from __future__ import annotations

import pytest
import timm
import torch

from attention_transfer.cli.app import main


def run(capsys, *tokens):
    with pytest.raises(SystemExit) as ended:
        main(["layers", *map(str, tokens), "--device", "cpu"])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_candidates_and_choice_of_a_network_are_shown(capsys):
    code, out, _ = run(capsys, "timm/test_vit", "--image-size", 64)
    assert code == 0
    assert "timm/test_vit: 4 stages, from what timm documents" in out
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("blocks.")]
    assert [row[0] for row in rows if row[-1] == "compared"] == ["blocks.0", "blocks.2", "blocks.3", "blocks.5"]
    assert all("tokens of 4 x 4 behind 1" in " ".join(row) for row in rows)


def test_pairs_and_what_each_weighs_are_shown(capsys, tmp_path):
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=5).state_dict(), tmp_path / "vit.pth")
    code, out, _ = run(
        capsys, "ResNet18", "--image-size", 96, "--teacher", tmp_path / "vit.pth", "--teacher-arch", "timm/test_vit"
    )
    assert code == 0
    pairs = [line.split() for line in out.partition("pairs")[2].splitlines() if line.strip().startswith("layer")]
    assert [row[:3] for row in pairs] == [
        ["layer1", "blocks.0", "6x6"],
        ["layer2", "blocks.2", "6x6"],
        ["layer3", "blocks.3", "6x6"],
        ["layer4", "blocks.5", "3x3"],
    ]
    assert sum(float(row[3]) for row in pairs) == pytest.approx(100, abs=0.1)


def test_a_teacher_of_one_size_is_built_for_the_size_that_is_set(capsys):
    code, out, _ = run(
        capsys, "CifarResNet-8", "--image-size", 32, "--teacher", "timm/test_vit", "--teacher-image-size", 80
    )
    assert code == 0
    assert "tokens of 5 x 5 behind 1" in out


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["timm/resnet18q"], "timm has no network 'resnet18q'. Near are resnet18"),
        (["timm/crossvit_tiny_240", "--image-size", 64], "(it is published for 240x240)"),
        (["ResNet18", "--layers", "layer9"], "has no module 'layer9'"),
        (["nowhere.pth"], "nowhere.pth"),
    ],
)
def test_what_cannot_be_shown_is_a_sentence(capsys, tokens, message):
    code, _, err = run(capsys, *tokens)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
