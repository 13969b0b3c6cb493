"""Runs whose attention is of the input's gradient or of the class token: cached, resumed, refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import assert_same_weights, without_clock
from support.transformers import tiny_vit
from torch.nn import functional as F

from attention_transfer import (
    ConfigError,
    LoaderOptions,
    LossTerm,
    Needs,
    TeacherError,
    attention_figure,
    create_model,
    extract_attention_maps,
    source_loaders,
    train_at,
)
from attention_transfer.cache.folder import entries
from attention_transfer.config import resolve_config
from attention_transfer.distributed import Runtime
from attention_transfer.teacher.base import NoTeacher
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.precision.trial import answering_step, training_step

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(settings, tmp_path):
    changes = {"image_size": 32, "model": "CifarResNet-8", "epochs": 2, "lr": 0.01}
    return {**settings, **changes, "cache_dir": str(tmp_path / "cache")}


def networks(kind, classes=10):
    """Settings of a run with this kind of attention, and a student and a teacher for it, made anew."""
    if kind == "class_token":
        return {"attention": kind, "student": tiny_vit(0), "teacher": tiny_vit(1, depth=6, embed_dim=36, num_heads=3)}
    torch.manual_seed(1)
    teacher = create_model("CifarResNet-8", classes)
    torch.manual_seed(0)
    return {"attention": kind, "student": create_model("CifarResNet-8", classes), "teacher": teacher}


def run(recipe, kind, name="run", **changes):
    parts = networks(kind)
    size = 16 if kind == "gradient" else 32
    settings = {**recipe, "image_size": size, "attention": parts.pop("attention"), "experiment_name": name, **changes}
    return train_at(settings, **parts)


def answered(recipe, name="run"):
    log = (Path(recipe["log_dir"]) / f"{name}.log").read_text()
    return [(int(hits), int(misses)) for hits, misses in re.findall(r": (\d+) images answered from mem\w+, (\d+)", log)]


KINDS = {"gradient": 1, "class_token": 4}


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_speaks_once_and_what_it_said_is_what_it_says(recipe, kind):
    views = {"augment": True, "augment_views": 1}
    kept = run(recipe, kind, **views)["training_history"]
    assert answered(recipe) == [(0, 80), (80, 0)]
    again = run(recipe, kind, "again", **views)["training_history"]
    assert answered(recipe, "again") == [(80, 0), (80, 0)]
    live = run(recipe, kind, "live", teacher_cache="off", **views)["training_history"]
    assert without_clock(kept) == without_clock(again) == without_clock(live)
    for record in kept:
        for split in ("train", "val"):
            stages = [record[f"{split}_attention_stage_{i}"] for i in range(KINDS[kind])]
            assert f"{split}_attention_stage_{KINDS[kind]}" not in record
            assert all(0 < stage < 2 for stage in stages)
            assert record[f"{split}_attention"] == pytest.approx(sum(stages), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_resumes_to_the_bit(recipe, kind, tmp_path):
    whole = run(recipe, kind, "whole")
    run(recipe, kind, "parted", epochs=1)
    parts = networks(kind)
    del parts["attention"]
    resume = {"resume": str(tmp_path / "checkpoints" / "parted_last.pth"), "epochs": 2}
    resumed = train_at(resume, **parts)
    assert without_clock(whole["training_history"]) == without_clock(resumed["training_history"])
    assert_same_weights(whole["model"], resumed["model"])
    with pytest.raises(ConfigError, match=r"attention is 'max', but .* was trained with"):
        train_at({**resume, "attention": "max"}, **parts)


class Drawn:
    """Images in memory, whose fingerprint does not depend on their labels."""

    def __init__(self, split, turned=0, classes=("a", "b", "c")):
        self.place, self.classes, self.split = f"memory of {split}", classes, split
        self.labels = [(i + turned) % len(classes) for i in range(12)]
        self.pixels = np.random.default_rng(len(split)).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.labels)

    def open(self, index):
        return np.asarray(Image.fromarray(self.pixels[index]))

    def identity(self, index):
        return f"{index}"

    def fingerprint(self, mark):
        return f"{self.place} {mark}"


def maps_kept(recipe):
    return [entry for entry in entries(Path(recipe["cache_dir"])) if entry.kind == "maps"]


def drawn(turned=0):
    train, val, _ = source_loaders(
        Drawn("train", turned),
        Drawn("val", turned),
        None,
        LoaderOptions(6, num_workers=0, image_size=32, augment=False),
    )
    return {"train_loader": train, "val_loader": val}


def test_images_with_other_labels_do_not_get_the_gradient_maps_of_the_old_ones(recipe):
    own = {key: value for key, value in recipe.items() if key not in ("data_dir", "image_size")}
    for kind, misses, caches in (("gradient", [12, 12, 0], 4), ("sum", [12, 0, 0], 2)):
        before = len(maps_kept(recipe))
        for name, turned in (("first", 0), ("relabelled", 1), ("again", 1)):
            parts = networks(kind, classes=3)
            settings = {**own, "attention": parts.pop("attention"), "experiment_name": f"{kind}_{name}"}
            train_at(settings, **drawn(turned), **parts)
        first_epochs = [answered(recipe, f"{kind}_{name}")[0][1] for name in ("first", "relabelled", "again")]
        assert first_epochs == misses, kind
        assert len(maps_kept(recipe)) - before == caches, kind  # of train and val, by their labels


def test_a_teacher_of_other_classes_has_no_gradient_by_these_labels(recipe):
    parts = networks("gradient") | {"teacher": create_model("CifarResNet-8", 3)}
    with pytest.raises(TeacherError, match=r"gradient of the teacher's cross-entropy by the input, but .* 3 classes"):
        train_at({**recipe, "attention": parts.pop("attention")}, **parts)


class LogitDistance(LossTerm):
    name = "logit_distance"

    def __init__(self):
        super().__init__(1.0, Needs(logits=True))

    def forward(self, inputs):
        return {self.name: F.mse_loss(inputs.logits.float(), inputs.teacher.tensor("logits"))}


WARP = {"augment": True, "augment_views": "warp", "epochs": 1}


def test_gradient_maps_are_not_warped(recipe):
    with pytest.raises(ConfigError, match=r"'warp' cannot be used with maps: .* the gradient at a view is not"):
        run(recipe, "gradient", **WARP)


def test_maps_of_the_class_token_are_warped_on_the_grid_of_patches(recipe):
    record = run(recipe, "class_token", teacher_cache="on", **WARP)["training_history"][0]
    assert record["train_attention_stage_3"] > 0
    log = (Path(recipe["log_dir"]) / "run.log").read_text()
    assert "once on each whole image and its mirror image" in log
    assert "those of the whole image" not in log


def test_a_term_on_logits_is_told_that_warped_views_get_those_of_the_whole_image(recipe):
    parts = networks("sum")
    del parts["attention"]
    train_at({**recipe, **WARP}, terms=[LogitDistance()], **parts)
    log = (Path(recipe["log_dir"]) / "run.log").read_text()
    assert log.count("the teacher's logits are those of the whole image, not of the view; every term") == 1


def test_gradient_attention_and_a_compiled_student_exclude_each_other(recipe):
    with pytest.raises(ConfigError, match="'attention' differentiates the student twice, which compiled networks do"):
        run(recipe, "gradient", compile=True)


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_attention_of_the_class_token_needs_transformers_on_both_sides(recipe, side):
    parts = networks("class_token")
    parts[side] = create_model("CifarResNet-8", 10)
    with pytest.raises(ConfigError, match="needs transformers on both sides, but CifarResNet has no attention modules"):
        train_at({**recipe, "attention": parts.pop("attention")}, **parts)


def test_a_power_goes_with_sum_and_max_alone(recipe):
    with pytest.raises(ConfigError, match="attention_power is 4, but attention='gradient' has no power"):
        train_at({**recipe, "attention": "gradient", "attention_power": 4.0})


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_the_trial_of_number_formats_are_those_of_the_run(kind):
    parts = networks(kind)
    config = resolve_config({"attention": parts["attention"], "device": "cpu", "num_classes": 10})
    alone, shape = Runtime(torch.device("cpu")), (4, 3, 32, 32)
    training = training_step(config, alone, parts["student"], parts["teacher"], shape)
    answering = answering_step(config, alone, parts["teacher"], shape)
    for precision in ("fp32", "bf16"):
        training(precision, 4)
        answering(precision, 2)


def test_the_gradient_by_the_input_is_not_taken_in_fp16():
    config = resolve_config({"attention": "gradient"})
    with pytest.raises(ConfigError, match="gradient by the input, which vanishes in fp16"):
        Criterion(config, NoTeacher(), Runtime(torch.device("cpu"), "fp16"))
    Criterion(resolve_config({"attention": "gradient", "beta": 0.0}), NoTeacher(), Runtime(torch.device("cpu"), "fp16"))


@pytest.mark.parametrize("kind", KINDS)
def test_figures_and_maps_show_the_attention_that_is_compared(kind):
    parts = networks(kind)
    maps = extract_attention_maps(parts["student"], torch.rand(2, 3, 32, 32), {"attention": kind})
    side = 8 if kind == "gradient" else 4
    assert [tuple(stage.shape) for stage in maps] == [(2, side, side)] * KINDS[kind]
    for stage in maps:
        torch.testing.assert_close(stage.flatten(1).norm(dim=1), torch.ones(2))
    attention_figure(parts["student"], torch.rand(2, 3, 32, 32), {"attention": kind}, teacher=parts["teacher"])
