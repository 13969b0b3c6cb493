"""A teacher sees the run's pixels as it was trained to: its own normalisation, and its own size if it has only one."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from torch.nn import functional as F
from torchvision.models.maxvit import MaxVit

from attention_transfer import ConfigError, create_at_config, create_model, load_teacher_model, train_at
from attention_transfer.config import resolve_config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import Runtime
from attention_transfer.logs import log_once
from attention_transfer.networks.preprocessing import UNCHANGED, preprocessing_of
from attention_transfer.teacher.build import make_teacher

HALF = (0.5, 0.5, 0.5)
PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def normalised(pixels, mean, std):
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def vit(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 48, "patch_size": 8, "depth": 4, "embed_dim": 24, "num_heads": 2, "num_classes": 10}
    network = timm.create_model("vit_tiny_patch16_224", **sizes | options)
    network.pretrained_cfg |= {"mean": HALF, "std": HALF}
    return network.eval()


def test_a_network_of_the_runs_own_kind_sees_the_very_pixels():
    teacher = create_model("CifarResNet-8", 10)
    assert preprocessing_of(teacher, resolve_config({}), PIXELS) is UNCHANGED or (
        preprocessing_of(teacher, resolve_config({}), PIXELS) == UNCHANGED
    )
    assert UNCHANGED(PIXELS) is PIXELS
    assert UNCHANGED.identity == {}


def test_a_teacher_of_timm_sees_its_own_normalisation_and_size(caplog):
    log_once.cache_clear()
    config = resolve_config({"image_size": 32})
    images = normalised(PIXELS, config.mean, config.std)
    with caplog.at_level(logging.INFO, "attention_transfer"):
        preprocess = preprocessing_of(vit(), config, images)
    seen = preprocess(images)
    expected = F.interpolate(normalised(PIXELS, HALF, HALF).double(), (48, 48), mode="bicubic", antialias=True)
    assert torch.allclose(seen.double(), expected, atol=1e-5)
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "from timm's pretrained_cfg: mean (0.5, 0.5, 0.5)" in told
    assert "for images of 48x48: those of 32x32 are resized" in told


def test_its_answers_are_those_of_the_network_on_such_images():
    config, teacher = resolve_config({"image_size": 32, "alpha": 0.5}), vit()
    images = normalised(PIXELS, config.mean, config.std)
    output = make_teacher(teacher, config, Runtime(torch.device("cpu")))(
        Batch(images, torch.zeros(3, dtype=torch.int64))
    )
    with torch.no_grad():
        expected = teacher(preprocessing_of(teacher, config, images)(images))
    assert torch.allclose(output.logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "mean", "side"),
    [
        ({"teacher_mean": "run", "teacher_std": "run"}, (0.485, 0.456, 0.406), 48),
        ({"teacher_mean": (0.1, 0.2, 0.3), "teacher_image_size": 40}, (0.1, 0.2, 0.3), 40),
        ({"teacher_image_size": "run"}, HALF, 32),
    ],
)
def test_the_settings_win(settings, mean, side):
    config = resolve_config({"image_size": 32, **settings})
    std = config.std if settings.get("teacher_std") == "run" else HALF
    images = normalised(PIXELS, config.mean, config.std)
    seen = preprocessing_of(vit(), config, images)(images)
    pixels = F.interpolate(PIXELS, (side, side), mode="bicubic", antialias=True) if side != 32 else PIXELS
    assert torch.allclose(seen, normalised(pixels, mean, std), atol=1e-4)


@pytest.mark.slow
def test_a_checkpoint_knows_how_its_network_was_trained(tmp_path, few_digits):
    settings = create_at_config(
        data_dir=str(few_digits), model="CifarResNet-8", image_size=32, epochs=1, batch_size=64, num_workers=0,
        mean=HALF, std=HALF, precision="fp32", device="cpu", experiment_name="teacher", figure_freq=0,
        save_dir=str(tmp_path), log_dir=str(tmp_path), cache_dir=str(tmp_path),
    )  # fmt: skip
    train_at(settings)
    teacher = load_teacher_model(tmp_path / "teacher_best.pth", device="cpu")
    config = resolve_config({"image_size": 32})
    images = normalised(PIXELS, config.mean, config.std)
    assert torch.allclose(preprocessing_of(teacher, config, images)(images), normalised(PIXELS, HALF, HALF), atol=1e-5)


@pytest.mark.parametrize("side", [224, 64])
def test_torchvisions_maxvit_is_of_one_size(side):
    options = {"stem_channels": 8, "block_channels": [8, 8], "block_layers": [1, 1], "head_dim": 4}
    size = {"input_size": (side, side), "partition_size": 7 if side == 224 else 4}
    network = MaxVit(**options, **size, stochastic_depth_prob=0.0, num_classes=4)
    preprocess = preprocessing_of(network, resolve_config({}), PIXELS)
    assert preprocess.size == (side, side)
    assert network.eval()(preprocess(PIXELS)).shape == (3, 4)


def test_images_that_are_not_of_three_channels_need_the_runs_own():
    images = PIXELS[:, :1]
    with pytest.raises(ConfigError, match="set teacher_mean and teacher_std to 'run'"):
        preprocessing_of(vit(in_chans=1), resolve_config({}), images)(images)


@pytest.mark.slow
def test_remembered_answers_are_those_of_the_teachers_own_images_and_have_their_own_file(tmp_path, eighty_digits):
    settings = create_at_config(
        data_dir=str(eighty_digits), model="CifarResNet-8", image_size=32, epochs=2, batch_size=20, num_workers=0,
        alpha=0.5, precision="fp32", teacher_precision="fp32", device="cpu", experiment_name="run", overwrite=True,
        figure_freq=0, save_dir=str(tmp_path / "c"), log_dir=str(tmp_path / "l"), cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    remembered = train_at(settings, teacher=vit())
    live = train_at(settings | {"teacher_cache": "off"}, teacher=vit())
    for ours, theirs in zip(*(results["training_history"] for results in (remembered, live)), strict=True):
        assert ours["train_kd"] == pytest.approx(theirs["train_kd"], rel=1e-3)
    of_the_run = train_at(settings | {"teacher_mean": "run", "teacher_std": "run", "epochs": 1}, teacher=vit())
    kd = [results["training_history"][0]["train_kd"] for results in (remembered, of_the_run)]
    assert abs(kd[1] - kd[0]) > 1e-3 * kd[0]


@pytest.mark.slow
def test_maps_of_a_teacher_of_another_size_are_warped_onto_the_runs_views(tmp_path, few_digits):
    settings = create_at_config(
        data_dir=str(few_digits), model="CifarResNet-8", image_size=32, epochs=1, batch_size=64, num_workers=0,
        augment=True, augment_views="warp", color_jitter=0.0, precision="fp32", teacher_precision="fp32", device="cpu",
        experiment_name="warp", figure_freq=0, save_dir=str(tmp_path), log_dir=str(tmp_path),
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert train_at(settings, teacher=vit())["training_history"][0]["train_attention"] > 0
