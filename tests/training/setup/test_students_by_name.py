"""Students and teachers of timm and torchvision by name, and from files: built for the images, trained, rebuilt."""

from __future__ import annotations

import logging

import pytest
import timm
import torch

from attention_transfer import ConfigError, create_at_config, load_model, train_at
from attention_transfer.errors import CheckpointError, DataError
from attention_transfer.networks.registry import card_of

pytestmark = pytest.mark.slow


@pytest.fixture
def run_settings(tmp_path, few_digits):
    def settings(**changes):
        return create_at_config(
            **{
                "data_dir": str(few_digits),
                "image_size": 32,
                "epochs": 1,
                "batch_size": 40,
                "num_workers": 0,
                "precision": "fp32",
                "teacher_precision": "fp32",
                "device": "cpu",
                "lr": 0.01,
                "experiment_name": "run",
                "overwrite": True,
                "save_dir": str(tmp_path / "checkpoints"),
                "log_dir": str(tmp_path / "logs"),
                "cache_dir": str(tmp_path / "cache"),
            }
            | changes
        )

    return settings


def weights_file(path, name="test_vit", **options):
    torch.manual_seed(3)
    network = timm.create_model(name, **{"num_classes": 7, **options})
    torch.save(network.state_dict(), path)
    return network


def test_a_student_of_timm_learns_from_a_teacher_of_timm_and_is_rebuilt_from_its_checkpoint(run_settings, tmp_path):
    weights_file(tmp_path / "teacher.pth", "test_resnet", num_classes=10)
    results = train_at(
        run_settings(
            model="timm/test_vit",
            image_size=64,
            alpha=0.5,
            teacher_model=str(tmp_path / "teacher.pth"),
            teacher_arch="timm/test_resnet",
        )
    )
    assert results["training_history"][0]["train_attention"] > 0
    assert results["training_history"][0]["train_kd"] > 0
    loaded = load_model(tmp_path / "checkpoints" / "run_best.pth")
    card = card_of(loaded["model"])
    assert (card.name, card.num_classes, card.image_size) == ("timm/test_vit", 10, (64, 64))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded["model"](images), results["model"].cpu()(images))


def test_a_student_of_torchvision_without_its_auxiliary_heads_is_trained(run_settings):
    results = train_at(run_settings(model="torchvision/squeezenet1_1", image_size=64))
    assert card_of(results["model"]).name == "torchvision/squeezenet1_1"


def test_weights_from_a_file_are_resampled_for_the_images_and_the_head_is_new(run_settings, tmp_path, caplog):
    network = weights_file(tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, "attention_transfer"):
        results = train_at(
            run_settings(model="timm/test_vit", weights=str(tmp_path / "weights.pth"), image_size=64, lr=1e-12)
        )
    student = results["model"].state_dict()
    assert torch.allclose(student["blocks.0.attn.qkv.weight"], network.state_dict()["blocks.0.attn.qkv.weight"])
    network.set_input_size(img_size=(64, 64))
    assert torch.allclose(student["pos_embed"], network.state_dict()["pos_embed"], atol=1e-6)
    assert student["head.weight"].shape[0] == 10
    assert any("its head head is new" in record.getMessage() for record in caplog.records)


def test_a_file_as_the_model_is_the_network_in_it_with_its_weights(run_settings, tmp_path):
    first = train_at(run_settings(model="CifarResNet-8", experiment_name="first"))
    file = tmp_path / "checkpoints" / "first_best.pth"
    second = train_at(run_settings(model=str(file), experiment_name="second", lr=1e-12))
    assert card_of(second["model"]).name == "CifarResNet-8"
    assert second["config"]["model"] == "CifarResNet-8"
    for mine, theirs in zip(second["model"].parameters(), first["model"].parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_a_file_of_no_registered_network_is_no_model(run_settings, tmp_path):
    weights_file(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"model: .*weights\.pth fits no registered network; say which"):
        train_at(run_settings(model=str(tmp_path / "weights.pth")))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "timm/resnet19x"}, ConfigError, r"timm has no network 'resnet19x'\. Near are resnet"),
        (
            {"model": "timm/crossvit_tiny_240", "image_size": 64},
            DataError,
            "cannot take images .* published for 240x240",
        ),
        ({"model": "timm/test_vit", "weights": "xyz"}, ConfigError, "weights is 'xyz', which timm does not have"),
        ({"model": "torchvision/vit_b_16", "image_size": (32, 64)}, ConfigError, "takes square images"),
    ],
)
def test_what_a_library_cannot_build_is_a_sentence_before_training(run_settings, changes, error, message):
    with pytest.raises(error, match=message):
        train_at(run_settings(**changes))
