"""Settings that have no effect in a run are warned of, or refused."""

from __future__ import annotations

import pytest
import torch
from support.runs import bring, tensors

from attention_transfer import ConfigError, create_model, prepare_dataloaders, train_at
from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.config import Config
from attention_transfer.data.views import Augmentation
from attention_transfer.training.setup.idle_settings import log_unbalanced_partners, warn_of_idle_settings
from attention_transfer.training.setup.user_parts import UserParts

TRIVIAL = {"augment": True, "augmentation": ("trivial",)}


def warnings_of(caplog, parts=None, **settings):
    caplog.clear()
    warn_of_idle_settings(Config(**settings), parts or UserParts())
    return [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"crop_pct": 0.5}, "crop_pct is 0.5, but resize is not 'crop'"),
        ({"unlabelled_ratio": 3.0}, "unlabelled_ratio is 3.0, but there is no unlabelled_dir"),
        ({"rotation": 45.0}, "rotation is 45.0, but augment is False"),
        ({"augment_views": 3}, "augment_views is 3, but augment is False"),
        ({"mask_rotation": True}, "mask_rotation is True, but augment is False"),
        ({**TRIVIAL, "rotation": 45.0}, "rotation is 45.0, but augmentation does not have the part 'default'"),
        ({**TRIVIAL, "crop_scale": (0.1, 0.2)}, r"crop_scale is (0.1, 0.2), but augmentation does not have"),
        ({"dkd_target": 2.0}, "dkd_target is 2.0, but logit_loss is not 'dkd'"),
        ({"loss_warmup": 0.5}, "loss_warmup is 0.5, but neither alpha_schedule nor beta_schedule is 'warmup'"),
        ({"teacher_mean": (0.5, 0.5, 0.5)}, "teacher_mean is (0.5, 0.5, 0.5), but there is no teacher"),
        ({"teacher_arch": "ResNet18"}, "teacher_arch is 'ResNet18', but no teacher is read from a file"),
    ],
)
def test_a_setting_that_does_nothing_is_warned_of_once(caplog, settings, why):
    (told,) = warnings_of(caplog, **settings)
    assert told.startswith(why)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resize": "crop", "crop_pct": 0.5},
        {"augment": True, "rotation": 45.0, "augment_views": 3, "mask_rotation": True},
        {**TRIVIAL, "rotation": 0.0, "crop_scale": (1.0, 1.0), "color_jitter": 0.0},
        {"augment": True, "augmentation": ("default", "trivial"), "color_jitter": 0.5},
        {"unlabelled_dir": "others", "unlabelled_ratio": 3.0},
        {"logit_loss": "dkd", "dkd_target": 2.0},
        {"alpha_schedule": "warmup", "loss_warmup": 0.5},
        {"teacher_model": "teacher.pth", "teacher_arch": "ResNet18", "teacher_mean": "run"},
    ],
    ids=str,
)
def test_a_setting_that_is_used_is_not_warned_of(caplog, settings):
    assert warnings_of(caplog, **settings) == []


def test_a_module_as_the_teacher_has_a_preprocessing_and_no_file(caplog):
    parts = UserParts(teacher=create_model("CifarResNet-8", 4))
    assert warnings_of(caplog, parts, teacher_mean="run") == []
    assert len(warnings_of(caplog, parts, teacher_key="model")) == 1


def test_a_run_says_so_in_its_log(settings, tmp_path):
    train_at({**settings, "model": "CifarResNet-8", "crop_pct": 0.5})
    assert (tmp_path / "logs" / "run.log").read_text().count("crop_pct is 0.5, but resize is not 'crop'") == 1


@pytest.mark.parametrize("setting", [{"mixup": 0.4}, {"cutmix": 1.0}, {"unlabelled_dir": "others"}], ids=str)
def test_a_loader_of_ones_own_is_refused_where_it_does_not_do_what_a_setting_says(settings, setting):
    augment = {"augment": "unlabelled_dir" not in setting}
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is .*, but train_loader is yours"):
        train_at({**bring(settings), **augment, **setting}, [tensors(8)])


def test_a_loader_of_ours_that_does_it_is_taken(settings, few_digits, eighty_digits, caplog):
    train, val, _ = prepare_dataloaders(
        few_digits, 16, True, 0, image_size=32, augmentation=Augmentation(mixup=0.4), unlabelled_dir=eighty_digits / "3"
    )
    recipe = {"augment": True, "mixup": 0.4, "unlabelled_dir": str(eighty_digits / "3")}
    assert train_at({**bring(settings), **recipe}, train, val)["status"] == "finished"
    assert "train_loader is yours" not in caplog.text


def test_augmentation_of_a_loader_of_ones_own_is_warned_of(settings, caplog):
    train_at({**bring(settings), "augment": True}, [tensors(8)])
    assert "augment is True, but train_loader is yours" in caplog.text


def test_weights_for_a_student_of_ones_own_are_refused(settings):
    with pytest.raises(ConfigError, match="weights is 'DEFAULT', but train_at has a student of yours"):
        train_at({**bring(settings), "weights": "DEFAULT"}, [tensors(8)], student=create_model("CifarResNet-8", 4))


def test_a_run_that_goes_on_needs_no_published_weights(settings, tmp_path, monkeypatch):
    torch.manual_seed(0)
    train_at({**settings, "model": "torchvision/resnet18", "epochs": 1, "batch_size": 80})
    path = tmp_path / "checkpoints" / "run_last.pth"
    content = read_checkpoint(path)
    content["config"]["weights"] = "IMAGENET1K_V1"
    write_checkpoint(path, content)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: pytest.fail("weights are fetched"))
    assert len(train_at({"resume": str(path), "epochs": 2})["training_history"]) == 2


@pytest.mark.parametrize(
    ("settings", "is_told"),
    [
        ({"sampler": "balanced", "augment": True, "mixup": 0.2}, True),
        ({"sampler": "balanced", "augment": True, "cutmix": 1.0}, True),
        ({"sampler": "balanced"}, False),
        ({"augment": True, "mixup": 0.2}, False),
    ],
    ids=str,
)
def test_second_images_that_a_balanced_sampler_does_not_balance_are_told(caplog, settings, is_told):
    with caplog.at_level("INFO", "attention_transfer"):
        log_unbalanced_partners(Config(**settings))
    assert ("drawn evenly from all" in caplog.text) is is_told
