"""Runs on frames that are no squares, and that images do not fill."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attention_transfer import create_model, train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.cli.app import main
from attention_transfer.data import prepare_dataloaders
from attention_transfer.training.own_loop import validate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wide_digits(eighty_digits, tmp_path_factory):
    """Pairs of the same digit side by side: 32 high, 64 wide."""
    root = tmp_path_factory.mktemp("wide")
    for folder in sorted(eighty_digits.iterdir()):
        (root / folder.name).mkdir()
        for file in sorted(folder.iterdir()):
            pixels = np.asarray(Image.open(file))
            Image.fromarray(np.concatenate([pixels, pixels[:, ::-1]], axis=1)).save(root / folder.name / file.name)
    return root


@pytest.fixture
def settings(settings, wide_digits, tmp_path):
    return {
        **settings, "data_dir": str(wide_digits), "model": "CifarResNet-8", "batch_size": 16, "epochs": 2, "lr": 1e-6,
        "alpha": 1.0, "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip


def assert_was_remembered(settings):
    """In the second epoch, of 'warp' those that are shown the same way round as in the first."""
    log = Path(settings["log_dir"], "remembered.log").read_text()
    answered = int(re.search(r"epoch 2: (\d+) images answered from memory", log)[1])
    assert answered > 20 if settings["augment_views"] == "warp" else answered == 60


@pytest.mark.parametrize(
    ("size", "resize", "views"),
    [
        ((32, 48), "pad", None),
        ((32, 48), "pad", 1),
        ((32, 48), "pad", "warp"),
        (32, "pad", "warp"),
        ((24, 32), "crop", 1),
        ((24, 32), "crop", "warp"),
        ((16, 32), "squash", "warp"),
    ],
)
def test_what_is_remembered_of_such_a_frame_is_what_the_live_teacher_says(settings, teacher, size, resize, views):
    settings |= {"image_size": size, "resize": resize, "augment": views is not None, "augment_views": views}
    remembered = train_at({**settings, "experiment_name": "remembered"}, teacher=teacher)
    assert_was_remembered(settings)
    live = train_at({**settings, "experiment_name": "live", "teacher_cache": "off"}, teacher=teacher)
    for ours, theirs in zip(remembered["training_history"], live["training_history"], strict=True):
        for figure in ("train_attention", "train_kd", "val_attention", "val_kd"):
            assert ours[figure] == pytest.approx(theirs[figure], rel=2e-3)
            assert ours[figure] > 0


@pytest.mark.parametrize("views", [1, "warp"])
def test_what_is_remembered_of_views_of_many_parts_is_what_the_live_teacher_says(settings, teacher, views):
    parts = ("default", "pad_crop", "erasing", "trivial")
    settings |= {"image_size": 32, "augment": True, "augmentation": parts, "augment_views": views}
    remembered = train_at({**settings, "experiment_name": "remembered"}, teacher=teacher)
    assert_was_remembered(settings)
    live = train_at({**settings, "experiment_name": "live", "teacher_cache": "off"}, teacher=teacher)
    for ours, theirs in zip(remembered["training_history"], live["training_history"], strict=True):
        assert ours["train_attention"] == pytest.approx(theirs["train_attention"], rel=2e-3)
        assert ours["train_kd"] == pytest.approx(theirs["train_kd"], rel=2e-3)


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_the_empty_rest_of_a_padded_image_is_left_out_of_the_loss_and_nothing_else_is(wide_digits, teacher, resize):
    train, *_ = prepare_dataloaders(wide_digits, 16, num_workers=0, image_size=32, resize=resize)
    torch.manual_seed(0)
    student, batch = create_model("CifarResNet-8", 10), next(iter(train))
    masked = validate(student, teacher, [batch], "cpu")["attention"]
    everywhere = validate(student, teacher, [tuple(batch)], "cpu")["attention"]
    assert (masked != everywhere) == (resize == "pad")


def test_a_checkpoint_is_evaluated_and_drawn_in_its_own_frame(settings, wide_digits, tmp_path, capsys):
    results = train_at({**settings, "image_size": (32, 48), "resize": "pad", "lr": 0.05, "alpha": 0.0})
    checkpoint = tmp_path / "checkpoints" / "run_last.pth"
    saved = read_checkpoint(str(checkpoint))["config"]
    assert (tuple(saved["image_size"]), saved["resize"], saved["crop_pct"]) == ((32, 48), "pad", 0.875)

    def figures(*words):
        with pytest.raises(SystemExit) as ending:
            main(["evaluate", str(checkpoint), "--json", str(tmp_path / "f.json"), "--device", "cpu", *words])
        assert ending.value.code == 0, capsys.readouterr().err
        return json.loads((tmp_path / "f.json").read_text())

    best = tmp_path / "checkpoints" / "run_best.pth"
    checkpoint = best if best.exists() else checkpoint
    here = figures()
    assert here["loss"] == pytest.approx(results["test_results"]["loss"], rel=1e-5)
    assert here["multiply_adds"] == results["test_results"]["multiply_adds"]
    assert figures("--resize", "squash")["loss"] != pytest.approx(here["loss"], rel=1e-4)
    assert figures("--image-size", "32")["multiply_adds"] < here["multiply_adds"]
    assert figures("--image-size", "32", "64")["multiply_adds"] > here["multiply_adds"]

    file = next((wide_digits / "3").iterdir())
    with pytest.raises(SystemExit) as ending:
        main(["visualize", str(checkpoint), str(file), "--output", str(tmp_path / "a.png"), "--device", "cpu"])
    assert ending.value.code == 0, capsys.readouterr().err
    assert Image.open(tmp_path / "a.png").width > 0
