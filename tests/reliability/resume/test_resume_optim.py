"""Optimizers, schedules, accumulated gradients and averages go on to the bit, stopped wherever."""

from __future__ import annotations

import pytest
import torch
from support.runs import assert_same_weights, scalars, without_clock

from attention_transfer import ConfigError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.training.callbacks.base import Callback

pytestmark = pytest.mark.slow

RECIPES = {
    "adamw, cosine, ema": {
        "optimizer": "adamw", "lr": 3e-3, "schedule": "cosine", "warmup_epochs": 1, "ema": 0.8, "ema_start": 2,
        "weight_decay_norms": False,
    },
    "sgd, onecycle, groups of 3, clipped": {
        "schedule": "onecycle", "accumulate": 3, "clip_grad": 1.0, "nesterov": True,
    },
    "lion, poly, groups of 2, ema beside": {
        "optimizer": "lion", "lr": 1e-3, "schedule": "poly", "min_lr": 1e-5, "accumulate": 2, "ema": 0.8,
        "best_weights": "student",
    },
    "lookahead_radam, multistep, warm-up": {
        "optimizer": "lookahead_radam", "lr": 3e-3, "schedule": "multistep", "milestones": (2,), "warmup_epochs": 1,
    },
    "RMSprop, step, groups of 4, ema": {
        "optimizer": "RMSprop", "lr": 1e-3, "step_size": 1, "accumulate": 4, "ema": 0.8,
    },
    "lamb, constant, clipped": {"optimizer": "lamb", "schedule": "constant", "clip_grad": 0.1},
}  # fmt: skip
BATCHES = 8
STOPS = {
    "adamw, cosine, ema": (5, 2 * BATCHES + 7),
    "sgd, onecycle, groups of 3, clipped": (1, BATCHES + 2),
    "lion, poly, groups of 2, ema beside": (BATCHES, BATCHES + 2),
    "lookahead_radam, multistep, warm-up": (1, 2 * BATCHES + 7),
    "RMSprop, step, groups of 4, ema": (5, 2 * BATCHES + 7),
    "lamb, constant, clipped": (BATCHES, BATCHES + 2),
}
"""After how many batches a run is stopped: the first, the last of an epoch, inside of the first, second or last one."""


@pytest.fixture
def settings(settings, tmp_path):
    return {
        **settings, "model": "CifarResNet-8", "image_size": 16, "batch_size": 10, "epochs": 3, "augment": True,
        "print_freq": 1, "save_freq": 1, "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip


class StopAfter(Callback):
    """Asks for the end of the run after so many batches."""

    def __init__(self, batches):
        self.left = batches

    def batch_trained(self, run, batch, meter):
        self.left -= 1
        if self.left == 0:
            run.stop("that is enough")


def student():
    torch.manual_seed(5)
    return create_model("CifarResNet-8", 10)


def assert_equal(one, other, where=""):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_equal(value, other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, value in enumerate(one):
            assert_equal(value, other[number], f"{where}[{number}]")
    else:
        assert one == other, where


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_stopped_at_any_batch_ends_as_one_that_nobody_stops(settings, teacher, tmp_path, recipe):
    settings = {**settings, **RECIPES[recipe]}
    group = settings.get("accumulate", 1)
    whole = train_at({**settings, "experiment_name": "whole"}, student=student(), teacher=teacher)
    theirs = read_checkpoint(tmp_path / "checkpoints" / "whole_last.pth")
    for batches in STOPS[recipe]:
        name = f"stopped-{batches}"
        folders = {"experiment_name": name}
        stopped = train_at({**settings, **folders}, student=student(), teacher=teacher, callbacks=[StopAfter(batches)])
        assert stopped["status"] == "stopped"
        last = read_checkpoint(tmp_path / "checkpoints" / f"{name}_last.pth")["training"]
        done = batches % BATCHES or BATCHES
        # a stop falls between two steps of the optimizer
        ends_at = min(-(-done // group) * group, BATCHES)
        assert last["step"] == (batches - done) + ends_at
        resumed = train_at({**settings, **folders, "resume": "auto"}, student=student(), teacher=teacher)
        assert resumed["status"] == "finished"
        assert without_clock(resumed["training_history"]) == without_clock(whole["training_history"])
        assert_same_weights(resumed["model"], whole["model"])
        mine = read_checkpoint(tmp_path / "checkpoints" / f"{name}_last.pth")
        for key in ("optimizer", "scheduler", "ema", "best_epoch", "best_weights", "step"):
            assert_equal(mine["training"][key], theirs["training"][key], key)
        assert (mine["weights"], mine["epoch"]) == (theirs["weights"], theirs["epoch"])
        assert_equal(mine["model_state_dict"], theirs["model_state_dict"])
        assert scalars(tmp_path / "logs" / name) == scalars(tmp_path / "logs" / "whole")


def test_a_run_goes_on_from_its_best_file_with_the_students_weights_and_their_average(settings, tmp_path):
    settings = {**settings, **RECIPES["adamw, cosine, ema"], "augment": False}
    whole = train_at({**settings, "experiment_name": "whole"}, student=student())
    for epoch in (1, 2):
        path = tmp_path / "checkpoints" / f"whole_epoch_{epoch}.pth"
        rest = train_at({"resume": str(path), "experiment_name": f"rest-{epoch}"}, student=student())
        assert without_clock(rest["training_history"]) == without_clock(whole["training_history"])
        assert_same_weights(rest["model"], whole["model"])


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "poly"])
def test_a_schedule_over_the_whole_run_holds_it_to_its_epochs(settings, tmp_path, schedule):
    train_at({**settings, "schedule": schedule})
    path = str(tmp_path / "checkpoints" / "run_epoch_2.pth")
    with pytest.raises(ConfigError, match=r"epochs is 5, but .* was trained with 3"):
        train_at({"resume": path, "epochs": 5})
    assert len(train_at({"resume": path, "epochs": 3})["training_history"]) == 3


def test_a_schedule_of_cuts_with_a_warm_up_goes_on_for_more_epochs(settings, tmp_path):
    recipe = {"schedule": "multistep", "milestones": (2, 4), "warmup_epochs": 1, "lr": 0.02}
    train_at({**settings, **recipe, "epochs": 5, "experiment_name": "whole"}, student=student())
    train_at({**settings, **recipe, "epochs": 3, "experiment_name": "part"}, student=student())
    path = str(tmp_path / "checkpoints" / "part_last.pth")
    rest = train_at({"resume": path, "epochs": 5}, student=student())["training_history"]
    assert [record["lr"] for record in rest] == pytest.approx([0.02 / 9, 0.02, 0.002, 0.002, 0.0002])
    whole = read_checkpoint(tmp_path / "checkpoints" / "whole_last.pth")["training"]["history"]
    assert without_clock(rest) == without_clock(whole)
