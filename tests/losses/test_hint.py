"""Hints: the formula, the projectors in a run and its checkpoints, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import assert_same_weights, tensors, without_clock
from torch import nn

from attention_transfer import ConfigError, compute_at_loss, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.features.pairing import StagePair
from attention_transfer.features.signals import FEATURES, Signal, StudentOutput, TeacherOutput
from attention_transfer.losses.hint import Hint
from attention_transfer.losses.term import LossInputs
from attention_transfer.training.prefill import prefill_caches


def random_features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def inputs_of(student, teacher, coverage=None):
    mine = StudentOutput({FEATURES: Signal((student,))})
    theirs = TeacherOutput({FEATURES: Signal((teacher,), coverage=None if coverage is None else (coverage,))})
    return LossInputs(mine, theirs, (StagePair(0, 0, (3, 4)),))


def built(inputs):
    torch.manual_seed(0)
    term = Hint(1.0)
    term.build(inputs)
    return term.double()


def test_the_hint_is_the_mean_squared_difference_of_projected_features():
    student, teacher = random_features(2, 3, 6, 8), random_features(2, 5, 3, 4, seed=1)
    inputs = inputs_of(student, teacher)
    term = built(inputs)
    weight, bias = (x.detach().numpy() for x in (term.projectors[0].weight, term.projectors[0].bias))
    projected = np.einsum("oi,bihw->bohw", weight[:, :, 0, 0], student.numpy()) + bias[None, :, None, None]
    pooled = projected.reshape(2, 5, 3, 2, 4, 2).mean(axis=(3, 5))
    reported = term(inputs)
    assert reported["hint"].item() == pytest.approx(((pooled - teacher.numpy()) ** 2).mean(), rel=1e-12)
    assert reported["hint"] == reported["hint_stage_0"]


def test_gradients_of_the_hint_are_those_of_finite_differences():
    student, teacher = random_features(2, 3, 6, 8).requires_grad_(), random_features(2, 5, 3, 4, seed=1)
    term = built(inputs_of(student, teacher))
    assert torch.autograd.gradcheck(lambda x: term(inputs_of(x, teacher))["hint"], [student])
    weight = term.projectors[0].weight.detach().clone().requires_grad_()

    def of_weight(w):
        projected = {"projectors.0.weight": w}
        return torch.func.functional_call(term, projected, (inputs_of(student.detach(), teacher),))["hint"]

    assert torch.autograd.gradcheck(of_weight, [weight])


def test_cells_that_show_no_image_are_no_part_of_the_hint():
    student, teacher = random_features(2, 3, 3, 4), random_features(2, 5, 3, 4, seed=1)
    shown = torch.ones(2, 3, 4)
    shown[0, :, 2:] = 0
    term = built(inputs_of(student, teacher))
    plain = term(inputs_of(student, teacher, shown))["hint"]
    other = teacher.clone()
    other[0, :, :, 2:] += 100
    assert torch.equal(term(inputs_of(student, other, shown))["hint"], plain)
    assert plain < term(inputs_of(student, teacher))["hint"]


@pytest.fixture
def recipe(settings):
    return {**settings, "model": "CifarResNet-8", "precision": "fp32", "epochs": 2, "beta": 0.0, "hint": 2.0}


def kept_projectors(path):
    return read_checkpoint(path)["training"]["stateful"]["the loss term hint"]


@pytest.mark.slow
def test_projectors_are_trained_kept_and_resumed_to_the_bit_while_the_teacher_runs_live(recipe, tmp_path):
    torch.manual_seed(1)
    teacher = create_model("WideResNet-10-2", 10)  # other channels than the student's
    whole = train_at({**recipe, "experiment_name": "whole"}, teacher=teacher)
    train_at({**recipe, "experiment_name": "parted", "epochs": 1}, teacher=teacher)
    last = tmp_path / "checkpoints" / "parted_last.pth"
    halfway = kept_projectors(last)
    resumed = train_at({"resume": str(last), "epochs": 2}, teacher=teacher)
    assert without_clock(resumed["training_history"]) == without_clock(whole["training_history"])
    assert_same_weights(whole["model"], resumed["model"])
    at_the_end = kept_projectors(last)
    assert at_the_end.keys() == {f"projectors.{i}.{name}" for i in range(3) for name in ("weight", "bias")}
    assert not any(torch.equal(value, halfway[key]) for key, value in at_the_end.items())
    for key, value in kept_projectors(tmp_path / "checkpoints" / "whole_last.pth").items():
        assert torch.equal(value, at_the_end[key])
    history = whole["training_history"]
    assert history[1]["train_hint"] < history[0]["train_hint"]
    stages = sum(history[0][f"train_hint_stage_{i}"] for i in range(3))
    assert stages == pytest.approx(history[0]["train_hint"], rel=1e-6)
    assert history[0]["train_loss"] == pytest.approx(
        history[0]["train_classification"] + 2 * history[0]["train_hint"], rel=1e-5
    )
    said = (Path(recipe["log_dir"]) / "whole.log").read_text()
    assert said.count("the teacher runs on every batch: the loss needs its features, not cached") == 1


@pytest.mark.slow
def test_without_a_hint_nothing_of_it_is_reported_or_kept(recipe, teacher, tmp_path):
    results = train_at({**recipe, "epochs": 1, "hint": 0.0, "beta": 1.0}, teacher=teacher)
    assert not any("hint" in key for key in results["training_history"][0])
    assert (
        "the loss term hint" not in read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["training"]["stateful"]
    )


@pytest.mark.slow
def test_a_hint_that_cannot_be_given_is_refused(recipe, teacher):
    with pytest.raises(ConfigError, match="'hint' needs the teacher's features, but there is no teacher"):
        train_at(recipe)
    with pytest.raises(ConfigError, match="built and trained by train_at alone"):
        compute_at_loss(create_model("CifarResNet-8", 10), teacher, *tensors(4, classes=10), {"hint": 1.0})
    with pytest.raises(ConfigError, match="features, which are not cached"):
        prefill_caches({**recipe, "teacher_model": "teacher.pth"})
    blind = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    with pytest.raises(ConfigError):
        train_at(recipe, teacher=blind)


def test_a_hint_that_was_never_built_is_an_error():
    with pytest.raises(ConfigError, match="0 projectors for 1 pairs"):
        Hint(1.0).is_silent(inputs_of(random_features(1, 3, 3, 4), random_features(1, 5, 3, 4)))
