"""What a run compares is decided once, told with each pair's share of the loss, kept, and held to when it goes on."""

from __future__ import annotations

import logging

import pytest
import timm
import torch

from attention_transfer import ConfigError, create_at_config, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.config import resolve_config
from attention_transfer.distributed import Runtime
from attention_transfer.losses.total import default_terms
from attention_transfer.training.setup.comparison import compare

pytestmark = pytest.mark.slow


def small_vit(name="deit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 4, "depth": 8, "embed_dim": 24, "num_heads": 2, "num_classes": 10}
    return timm.create_model(name, **sizes | options)


def comparison(student, teacher, side=32, **settings):
    config = resolve_config({"image_size": side, **settings})
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    return compare(config, default_terms(config), student, teacher, images, Runtime(torch.device("cpu")))


def test_a_pyramid_is_paired_with_blocks_by_relative_depth():
    found = comparison(create_model("CifarResNet-8", 10), small_vit())
    assert [(pair.student, pair.teacher, pair.size) for pair in found.pairs] == [
        (0, 0, (8, 8)),
        (1, 2, (8, 8)),
        (2, 3, (8, 8)),
    ]
    assert found.teacher.names == ("blocks.1", "blocks.3", "blocks.5", "blocks.7")
    assert sum(found.shares) == pytest.approx(1)
    assert found.lines()[-1] == "not compared of the teacher: blocks.3 (tokens of 8 x 8 behind 1, 8x8)"


def test_large_maps_weigh_less_and_the_shares_say_so():
    teacher = create_model("ResNet18", 10).eval()
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    shares = comparison(create_model("ResNet18", 10), teacher, side=128).shares
    assert shares[0] < shares[-1]


def test_the_shares_are_those_of_the_weighted_stages():
    student = create_model("CifarResNet-8", 10)
    plain = comparison(student, small_vit()).shares
    weighted = comparison(student, small_vit(), stage_weights=(0.0, 1.0, 3.0)).shares
    total = plain[1] + 3 * plain[2]
    assert weighted == pytest.approx((0, plain[1] / total, 3 * plain[2] / total))


@pytest.mark.parametrize(
    ("settings", "pairs"), [({}, 3), ({"beta": 0.0}, 3), ({"attention": "gradient"}, 1)], ids=["sum", "off", "gradient"]
)
def test_a_wrong_number_of_stage_weights_is_refused_before_the_first_batch(settings, pairs):
    student = create_model("CifarResNet-8", 10)
    with pytest.raises(ConfigError, match=rf"stage_weights has 2 numbers, but {pairs} pairs of stages are compared"):
        comparison(student, create_model("CifarResNet-14", 10), stage_weights=(1.0, 2.0), **settings)


def test_a_few_tokens_with_most_of_the_energy_are_warned_of():
    teacher = small_vit()
    with torch.no_grad():
        teacher.pos_embed[:, 1 + 17] += 100.0
    found = comparison(create_model("CifarResNet-8", 10), teacher)
    assert found.concentrated == (0, 1, 2, 3)
    assert "a few tokens hold most of the energy of the teacher's blocks.1" in found.warnings()[0]
    assert comparison(create_model("CifarResNet-8", 10), small_vit()).warnings() == []


def test_a_run_tells_keeps_and_holds_to_what_it_compares(tmp_path, few_digits, caplog):
    settings = create_at_config(
        data_dir=str(few_digits), model="CifarResNet-8", image_size=32, epochs=1, batch_size=32, num_workers=0,
        precision="fp32", teacher_precision="fp32", device="cpu", experiment_name="vit", beta=100.0,
        save_dir=str(tmp_path / "checkpoints"), log_dir=str(tmp_path / "logs"), cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    with caplog.at_level(logging.INFO, "attention_transfer"):
        results = train_at(settings, teacher=small_vit())
    assert results["training_history"][0]["train_attention"] > 0
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("attention: ")]
    assert "layer2 (NCHW) with the teacher's blocks.5 (tokens of 8 x 8 behind 1, 8x8) at 8x8" in told[1]
    assert told[1].endswith("% of the initial attention loss")
    checkpoint = tmp_path / "checkpoints" / "vit_last.pth"
    kept = read_checkpoint(checkpoint)["training"]["recipe"]
    assert kept["stages of the student"] == "layer1 (NCHW); layer2 (NCHW); layer3 (NCHW)"
    assert kept["stages of the teacher"].startswith("blocks.1 (tokens of 8 x 8 behind 1, 8x8); blocks.3")

    changed = read_checkpoint(checkpoint)
    changed["training"]["recipe"]["stages of the teacher"] = "blocks.0 (tokens of 8 x 8 behind 1, 8x8)"
    write_checkpoint(checkpoint, changed)
    with pytest.raises(ConfigError, match=r"stages of the teacher blocks\.0 .*this run has blocks\.1"):
        train_at({**settings, "epochs": 2, "resume": str(checkpoint)}, teacher=small_vit())
