"""What may be different when a run goes on, and what is said of it."""

from __future__ import annotations

import pytest

from attention_transfer import ConfigError, train_at
from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.config import Config, resolve_config
from attention_transfer.training.checkpointing.resume import MAY_CHANGE, OF_TEACHERS_IMAGES
from attention_transfer.training.setup.data import opened as opened_data

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(settings):
    return {**settings, "model": "CifarResNet-8", "batch_size": 20, "precision": "fp32"}


def test_another_torch_is_said_to_end_the_equality_of_bits(settings, tmp_path):
    train_at(settings)
    path = tmp_path / "checkpoints" / "run_last.pth"
    content = read_checkpoint(path)
    content["training"]["made_with"]["torch"] = "1.0"
    write_checkpoint(path, content)
    assert len(train_at({"resume": str(path), "epochs": 2})["training_history"]) == 2
    log = (tmp_path / "logs" / "run.log").read_text()
    assert "not bit for bit" in log
    assert "was 1.0" in log


def test_without_a_change_nothing_of_the_kind_is_said(settings, tmp_path):
    train_at(settings)
    train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2})
    assert "not bit for bit" not in (tmp_path / "logs" / "run.log").read_text()


RECIPE = sorted(Config.model_fields.keys() - MAY_CHANGE | {*OF_TEACHERS_IMAGES})
OTHERS = {
    "model": "CifarResNet-14", "weights": "DEFAULT", "layers": ("layer1",), "num_classes": 9,
    "class_names": tuple("abcdefghij"), "image_size": 40, "mean": (0.4, 0.4, 0.4), "std": (0.3, 0.3, 0.3),
    "batch_size": 10, "split_seed": 3, "val_fraction": 0.2,
    "test_fraction": 0.2, "augment": True, "crop_scale": (0.5, 1.0), "flip": False, "rotation": 5.0,
    "color_jitter": 0.1, "augment_views": 2, "augment_seed": 2, "lr": 0.3, "momentum": 0.5, "weight_decay": 1e-3,
    "step_size": 5, "gamma": 0.5, "seed": 3, "temperature": 2.0, "alpha": 0.5, "beta": 5.0, "precision": "bf16",
    "teacher_precision": "bf16", "map_precision": "fp32", "pixel_range": (0.0, 4095.0),
    "attention": "max", "attention_power": 3.0, "logit_loss": "dkd", "logit_standardization": True,
    "kd_balance": "paper", "dkd_target": 2.0, "dkd_nontarget": 2.0, "dkd_warmup": 2.0,
    "attention_reduction": "sum", "stage_weights": (1.0, 0.5, 2.0),
    "alpha_schedule": "linear", "beta_schedule": "cosine", "loss_warmup": 0.5, "hint": 1.0,
    "label_smoothing": 0.1, "class_weights": (1.0,) * 10, "sampler": "balanced", "best_by": "loss",
    "freeze": ("layer1",),
    "optimizer": "adamw", "nesterov": True, "weight_decay_norms": False, "schedule": "cosine", "milestones": (3,),
    "warmup_epochs": 1, "min_lr": 1e-5, "clip_grad": 1.0, "accumulate": 2, "ema": 0.9, "ema_start": 2,
    "best_weights": "student", "resize": "crop", "crop_pct": 0.5, "augmentation": ("trivial",), "mixup": 0.2,
    "cutmix": 0.2, "mask_rotation": True, "unlabelled_ratio": 0.5,
    "tf32": True, "teacher_mean": "run", "teacher_std": (0.1, 0.2, 0.3), "teacher_image_size": 64,
}  # fmt: skip
"""A value of each key that is neither the default nor what the run was trained with."""

OF_VIEWS = ("augmentation", "mixup", "cutmix", "mask_rotation")
"""Keys that ask for augment=True, which is refused first."""


@pytest.fixture(scope="module")
def trained(few_digits, tmp_path_factory):
    """The settings of a run, and its checkpoint after an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {
        "model": "CifarResNet-8", "batch_size": 20, "precision": "fp32", "teacher_precision": "fp32", "lr": 0.02,
        "data_dir": str(few_digits), "image_size": 16, "num_workers": 0, "epochs": 1, "device": "cpu",
        "save_dir": str(folder / "checkpoints"), "log_dir": str(folder / "logs"), "experiment_name": "run",
    }  # fmt: skip
    train_at(settings)
    return settings, folder / "checkpoints" / "run_last.pth"


@pytest.fixture
def never_prepared(monkeypatch):
    """Fails where a run comes to its data."""
    monkeypatch.setattr(opened_data, "open_loaders", lambda *arguments: pytest.fail("the refusal comes too late"))


@pytest.mark.parametrize("key", RECIPE)
def test_a_key_of_the_recipe_may_not_change_and_both_values_are_named_before_anything_is_done(
    trained, never_prepared, key
):
    _, path = trained
    there = getattr(resolve_config(read_checkpoint(path)["config"]), key)
    assert OTHERS[key] not in (there, Config.model_fields[key].default)
    beside = {"augment": True} if key in OF_VIEWS else {}
    with pytest.raises(ConfigError) as raised:
        train_at({"resume": str(path), "epochs": 2, **beside, key: OTHERS[key]})
    if key in OF_VIEWS:
        key, there = "augment", False
    sentence = f"{key} is {OTHERS[key]!r}, but {path} was trained with {there!r}; leave {key} out"
    assert str(raised.value).startswith(sentence)


def test_the_recipe_is_all_that_makes_another_network_of_the_run():
    assert set(RECIPE) == OTHERS.keys()  # a new setting is decided about: here, or in MAY_CHANGE


@pytest.mark.parametrize(
    "change",
    [
        {"compile": True},
        {"pixel_cache": "off"},
        {"teacher_cache": "off"},
        {"hash_files": True},
        {"cache_limit": 1.0},
        {"cache_dir": "elsewhere"},
        {"num_workers": 1},
        {"figure_freq": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_key_that_may_change_goes_on_with_its_new_value(trained, tmp_path, change):
    settings, path = trained
    folders = {"save_dir": str(tmp_path / "checkpoints"), "log_dir": str(tmp_path / "logs")}
    change = {key: str(tmp_path / value) if key == "cache_dir" else value for key, value in change.items()}
    assert change.keys() <= MAY_CHANGE
    resumed = train_at({**settings, "resume": str(path), "epochs": 2, **folders, **change})
    assert (resumed["status"], len(resumed["training_history"])) == ("finished", 2)
    assert {key: resumed["config"][key] for key in change} == change
