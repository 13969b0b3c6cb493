"""Runs whose settings name another attention map or another loss: remembered, resumed, and never changed in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.runs import assert_same_weights, tensors, without_clock

from attention_transfer import ConfigError, MapFunction, extract_attention_maps, load_model, train_at
from attention_transfer.features.maps import normalize
from attention_transfer.features.taps import Taps
from attention_transfer.networks.registry import taps_of

pytestmark = pytest.mark.slow

STRONGEST = MapFunction("max of squares over channels", lambda x: x.float().square().amax(dim=1))


@pytest.fixture
def recipe(settings):
    return {**settings, "model": "CifarResNet-8", "precision": "fp32", "teacher_precision": "fp32", "epochs": 2}


def log_of(recipe):
    return (Path(recipe["log_dir"]) / f"{recipe['experiment_name']}.log").read_text()


@pytest.mark.parametrize("maps", [{"attention": "max"}, {"attention_power": 3.0}])
def test_another_map_is_remembered_in_a_cache_of_its_own_and_resumes_to_the_bit(recipe, teacher, tmp_path, maps):
    train_at({**recipe, "cache_dir": str(tmp_path / "cache")}, teacher=teacher)
    recipe = {**recipe, **maps, "cache_dir": str(tmp_path / "cache")}
    whole = train_at({**recipe, "experiment_name": "whole"}, teacher=teacher)
    said = log_of({**recipe, "experiment_name": "whole"})
    assert "epoch 1: 0 images answered from memory, 80 by the teacher's network" in said
    assert "epoch 2: 80 images answered from memory, 0 by the teacher's network" in said
    train_at({**recipe, "experiment_name": "parted", "epochs": 1}, teacher=teacher)
    last = str(tmp_path / "checkpoints" / "parted_last.pth")
    resumed = train_at({"resume": last, "epochs": 2, "cache_dir": recipe["cache_dir"]}, teacher=teacher)
    assert without_clock(resumed["training_history"]) == without_clock(whole["training_history"])
    assert_same_weights(whole["model"], resumed["model"])
    assert 0 < whole["training_history"][1]["train_attention"] < whole["training_history"][0]["train_attention"]


def test_a_checkpoint_of_another_map_is_shown_by_that_map(recipe, teacher):
    train_at({**recipe, "epochs": 1, "attention": "max"}, teacher=teacher)
    loaded = load_model(Path(recipe["save_dir"]) / "run_last.pth")
    images, config = tensors(3, size=32)[0], loaded["config"]
    usual, own = (
        extract_attention_maps(loaded["model"], images),
        extract_attention_maps(loaded["model"], images, config),
    )
    with Taps(loaded["model"], taps_of(loaded["model"])) as taps:
        loaded["model"](images)
    for features, one, other in zip(taps.features, usual, own, strict=True):
        torch.testing.assert_close(other, normalize(features.abs().amax(dim=1).square()))
        assert not torch.allclose(one, other)


def test_a_map_function_and_a_setting_for_it_are_an_error(recipe, teacher):
    for given in ({"attention": "max"}, {"attention_power": 4.0}):
        with pytest.raises(ConfigError, match=r"attention_power .*map_function 'max of squares over channels'"):
            train_at({**recipe, **given}, teacher=teacher, map_function=STRONGEST)


@pytest.mark.parametrize("change", [{"attention": "max"}, {"attention_power": 4.0}])
def test_a_run_does_not_go_on_with_other_settings_of_the_loss(recipe, teacher, tmp_path, change):
    train_at({**recipe, "epochs": 1}, teacher=teacher)
    (key,) = change
    with pytest.raises(ConfigError, match=rf"{key} is .*, but .* was trained with"):
        train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2, **change}, teacher=teacher)
