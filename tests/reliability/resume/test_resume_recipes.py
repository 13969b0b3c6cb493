"""Whatever the recipe, a run that is stopped inside an epoch ends as one that nobody stops, bit for bit."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from support.runs import assert_same_weights, without_clock

from attention_transfer import create_model, train_at
from attention_transfer.checkpoint import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.speed]

RECIPES = {
    "smoothed": {"label_smoothing": 0.1},
    "weighted": {"class_weights": "auto", "label_smoothing": 0.1},
    "stopped early": {"early_stopping": 1, "best_by": "loss", "lr": 0.1, "epochs": 6},
    "frozen": {"freeze": ("conv1", "bn1", "layer1")},
    "linear probe": {"freeze": "backbone", "beta": 0.0},
    "parts of augmentation": {"augment": True, "augmentation": ("pad_crop", "erasing", "trivial")},
    "unlabelled": {"alpha": 1.0, "logit_loss": "dkd", "unlabelled_ratio": 0.7},
    "mixed": {"augment": True, "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "augment_views": 2, "alpha": 1.0},
    "padded": {"augment": True, "augment_views": "warp", "image_size": (16, 20), "resize": "pad"},
    "balanced": {"sampler": "balanced", "augment": True, "augment_views": 2},
}

IN_THE_FIRST_EPOCH = ("weighted", "frozen", "parts of augmentation")
"""These are stopped there, the others in the second, of five batches each."""


@pytest.fixture
def settings(settings, tmp_path, image_folder, eighty_digits):
    """Of a run on digits of which some are rarer than others."""
    folder = tmp_path / "digits"
    for split, first, last in (("train", 0, 5), ("val", 5, 7), ("test", 7, 8)):
        for name in "0123456789":
            (folder / split / name).mkdir(parents=True)
            files = sorted((eighty_digits / name).iterdir())[first:last]
            for file in files[: 2 if split == "train" and name in "357" else None]:
                (folder / split / name / file.name).symlink_to(file)
    return {
        **settings, "data_dir": str(folder), "model": "CifarResNet-8", "image_size": 16, "batch_size": 9, "epochs": 3,
        "lr": 0.01, "cache_dir": str(tmp_path / "cache"), "save_freq": 1,
    }  # fmt: skip


def student():
    torch.manual_seed(5)
    return create_model("CifarResNet-8", 10)


def stop_at(network, passes):
    left = [passes]

    def listen(module, arguments, output):
        left[0] -= module.training
        if left[0] == 0:
            left[0] = -1
            os.kill(os.getpid(), signal.SIGTERM)

    network.register_forward_hook(listen)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stopped_run_ends_as_one_that_nobody_stops(settings, teacher, tmp_path, eighty_digits, recipe):
    settings = {**settings, **RECIPES[recipe]}
    if recipe == "unlabelled":
        settings["unlabelled_dir"] = str(eighty_digits / "3")
    whole = train_at({**settings, "experiment_name": "whole"}, student=student(), teacher=teacher)
    stopped = student()
    stop_at(stopped, 3 if recipe in IN_THE_FIRST_EPOCH else 8)
    assert train_at(settings, student=stopped, teacher=teacher)["status"] == "stopped"
    resumed = train_at({**settings, "resume": "auto"}, student=student(), teacher=teacher)
    assert resumed["status"] == "finished"
    assert without_clock(resumed["training_history"]) == without_clock(whole["training_history"])
    assert_same_weights(resumed["model"], whole["model"])
    one, other = (read_checkpoint(tmp_path / "checkpoints" / f"{name}_last.pth") for name in ("whole", "run"))
    for key in ("best_epoch", "step", "class_weights", "frozen"):
        assert one["training"][key] == other["training"][key]
