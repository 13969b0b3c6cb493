"""Settings: defaults that notebooks rely on, and errors that say what is allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from attention_transfer import DEFAULT_CONFIG, Config, ConfigError, create_at_config
from attention_transfer.catalogue import canonical_network_name
from attention_transfer.config import allowed_values, resolve_config

PROMISED = {
    "model": "MultiBranchNet",
    "teacher_model": None,
    "data_dir": "data",
    "batch_size": 32,
    "num_workers": 4,
    "augment": False,
    "epochs": 50,
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "step_size": 10,
    "gamma": 0.1,
    "temperature": 4.0,
    "alpha": 0.0,
    "beta": 1e3,
    "device": "auto",
    "print_freq": 100,
    "save_freq": 10,
    "save_dir": "checkpoints",
    "log_dir": "logs",
    "experiment_name": None,
    "resume": None,
}


def test_the_defaults_that_notebooks_rely_on_are_there():
    assert type(DEFAULT_CONFIG) is dict
    assert {key: DEFAULT_CONFIG[key] for key in PROMISED} == PROMISED


def test_a_config_is_the_defaults_with_the_given_settings_on_top():
    config = create_at_config(epochs=3, beta=5, mean=[0.5, 0.5, 0.5], data_dir=Path("photos"))
    assert type(config) is dict
    assert config == {**DEFAULT_CONFIG, "epochs": 3, "beta": 5.0, "mean": (0.5, 0.5, 0.5), "data_dir": "photos"}
    assert create_at_config(**config) == config


def test_every_setting_has_a_help_text():
    assert all(field.description for field in Config.model_fields.values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"btea": 1}, ["'btea'", "'beta'"]),
        ({"learning_rate": 1}, ["'learning_rate'"]),
        ({"Epochs": 1}, ["'epochs'"]),
        ({"beta": "3"}, ["beta", "'3'", "number, at least 0"]),
        ({"lr": 0}, ["lr", "0", "above 0"]),
        ({"lr": float("nan")}, ["lr", "nan"]),
        ({"epochs": 1.5}, ["epochs", "1.5", "integer, at least 1"]),
        ({"epochs": True}, ["epochs", "True", "integer"]),
        ({"momentum": 1.0}, ["momentum", "1.0", "below 1"]),
        ({"augment": 1}, ["augment", "1", "true or false"]),
        ({"precision": "fp8"}, ["precision", "'fp8'", "auto | fp32 | bf16 | fp16"]),
        ({"model": "resnt18"}, ["model", "'resnt18'", "'ResNet18'"]),
        ({"model": "CifarResNet-21"}, ["model", "CifarResNet-21", "6n + 2", "CifarResNet-20"]),
        ({"model": "WideResNet-16-0"}, ["model", "'WideResNet-16-0'", "'WideResNet-16-2'"]),
        ({"device": "gpu"}, ["device", "'gpu'", "cuda"]),
        ({"std": (1.0, 0.0, 1.0)}, ["std", "greater than 0"]),
        ({"crop_scale": (0.9, 0.5)}, ["crop_scale", "0.9"]),
        ({"experiment_name": "a/b"}, ["experiment_name", "'a/b'", "slash"]),
        ({"num_classes": 3, "class_names": ["a", "b"]}, ["num_classes", "3", "class_names", "2"]),
        ({"class_names": ["a", "a"]}, ["class_names", "twice"]),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_key_value_and_what_is_allowed(settings, words):
    with pytest.raises(ConfigError) as error:
        create_at_config(**settings)
    for word in words:
        assert word in str(error.value)


def test_two_wrong_settings_are_both_named():
    with pytest.raises(ConfigError, match=r"(?s)epochs.*lr"):
        create_at_config(epochs=0, lr=-1)


def test_something_that_is_no_dict_is_refused():
    with pytest.raises(ConfigError, match="must be a dict"):
        resolve_config("config.yaml")


def test_a_config_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        Config().epochs = 3


def test_allowed_values_are_words():
    assert allowed_values("momentum") == "number, at least 0, below 1"
    assert allowed_values("mean") == "3 numbers"
    assert allowed_values("resume") == "text or none"


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("resnet18", "ResNet18"),
        ("multibranchnet", "MultiBranchNet"),
        ("CIFARRESNET-56", "CifarResNet-56"),
        ("WideResNet-16-2", "WideResNet-16-2"),
    ],
)
def test_a_network_is_known_in_any_case(name, canonical):
    assert canonical_network_name(name) == canonical
    assert create_at_config(model=name)["model"] == canonical


def test_the_configuration_imports_no_torch():
    code = "import sys; from attention_transfer import DEFAULT_CONFIG; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_none_is_the_default_config_also_after_a_notebook_has_changed_it(monkeypatch):
    monkeypatch.setitem(DEFAULT_CONFIG, "epochs", 3)
    assert resolve_config(None).epochs == 3
    assert resolve_config({}).epochs == 50


@pytest.mark.parametrize(("given", "kept"), [("auto", "auto"), ([0, 4095], (0.0, 4095.0)), ((-1.5, 2), (-1.5, 2.0))])
def test_a_pixel_range_is_auto_or_two_numbers(given, kept):
    assert create_at_config(pixel_range=given)["pixel_range"] == kept
    assert allowed_values("pixel_range") == "2 numbers or auto"


@pytest.mark.parametrize("given", [(4095, 0), (1, 1), "full", [0], [0, "x"], None, [0, float("inf")]])
def test_a_pixel_range_that_is_none_is_refused_with_what_is_allowed(given):
    with pytest.raises(ConfigError, match=r"pixel_range is .*\(allowed: 2 numbers or auto\)"):
        create_at_config(pixel_range=given)
