"""alpha and beta over a run: a function of the epoch, which a resumed run follows on without any state."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support.runs import assert_same_weights, tensors, without_clock

from attention_transfer import Callback, ConfigError, compute_at_loss, create_model, train_at
from attention_transfer.losses.schedules import CONSTANT, WeightSchedule

EXPECTED = {
    "constant": lambda epoch: 1.0,
    "linear": lambda epoch: 1 - epoch / 8,
    "cosine": lambda epoch: (1 + math.cos(math.pi * epoch / 8)) / 2,
    "warmup": lambda epoch: min(1.0, epoch / 2),
}
BOTH = {"alpha": 0.5, "beta": 100.0, "epochs": 8, "loss_warmup": 0.25}


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_schedule_is_its_formula_and_stays_between_0_and_1(kind):
    schedule = WeightSchedule(kind, epochs=8, rise=2)
    for epoch in (0, 0.5, 1, 2, 5.25, 8):
        assert schedule(epoch) == pytest.approx(EXPECTED[kind](epoch), abs=1e-15)
    assert schedule(-1) == schedule(0)
    assert schedule(9) == schedule(8)
    assert schedule.varies == (schedule != CONSTANT and kind != "constant")


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return create_model("CifarResNet-8", 10).eval()


@pytest.mark.parametrize(("alpha", "beta"), [("linear", "warmup"), ("warmup", "cosine"), ("cosine", "constant")])
def test_the_total_has_the_weights_of_the_moment_and_the_parts_have_none(student, teacher, alpha, beta):
    batch, config = tensors(4, classes=10, size=32), {**BOTH, "alpha_schedule": alpha, "beta_schedule": beta}
    plain = compute_at_loss(student, teacher, *batch, {**BOTH})
    for epoch in (0, 1.5, 4, 8):
        losses = compute_at_loss(student, teacher, *batch, config, epoch=epoch)
        assert (losses.kd, losses.attention) == (plain.kd, plain.attention)
        total = losses.classification + 0.5 * EXPECTED[alpha](epoch) * losses.kd
        torch.testing.assert_close(losses.total, total + 100 * EXPECTED[beta](epoch) * losses.attention)


def test_what_alpha_leaves_to_cross_entropy_is_that_of_the_moment(student, teacher):
    config = {**BOTH, "beta": 0.0, "kd_balance": "paper", "alpha_schedule": "linear"}
    losses = compute_at_loss(student, teacher, *tensors(4, classes=10, size=32), config, epoch=2)
    torch.testing.assert_close(losses.total, 0.625 * losses.classification + 0.375 * losses.kd)


def test_a_loop_of_ones_own_says_its_epoch(student, teacher):
    batch = tensors(4, classes=10, size=32)
    with pytest.raises(ConfigError, match="weight of 'attention' changes with the epoch"):
        compute_at_loss(student, teacher, *batch, {**BOTH, "beta_schedule": "linear"})
    assert compute_at_loss(student, teacher, *batch, {**BOTH, "beta": 0.0, "beta_schedule": "linear"}).attention > 0


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def batch_trained(self, run, step, meter):
        if run.state.step == self.step:
            run.stop("enough")


@pytest.fixture
def recipe(settings):
    scheduled = {"alpha": 0.5, "alpha_schedule": "warmup", "loss_warmup": 0.5, "beta_schedule": "linear"}
    return {**settings, **scheduled, "model": "CifarResNet-8", "precision": "fp32", "epochs": 2, "batch_size": 20}


@pytest.mark.slow
def test_a_run_resumed_inside_an_epoch_has_the_weights_of_one_without_a_stop(recipe, teacher, tmp_path):
    whole = train_at({**recipe, "experiment_name": "whole"}, teacher=teacher)
    parted = train_at({**recipe, "experiment_name": "parted"}, teacher=teacher, callbacks=[StopAt(6)])
    assert (parted["status"], len(parted["training_history"])) == ("stopped", 1)
    last = str(tmp_path / "checkpoints" / "parted_last.pth")
    resumed = train_at({"resume": last}, teacher=teacher)
    assert without_clock(resumed["training_history"]) == without_clock(whole["training_history"])
    assert_same_weights(whole["model"], resumed["model"])
    # and they are not those of constant weights
    constant = {"alpha_schedule": "constant", "beta_schedule": "constant", "experiment_name": "constant"}
    other = train_at({**recipe, **constant}, teacher=teacher)
    assert other["training_history"][0]["train_loss"] != whole["training_history"][0]["train_loss"]


@pytest.mark.slow
def test_a_schedule_that_is_stretched_by_a_resumed_run_is_told(recipe, teacher):
    train_at({**recipe, "epochs": 1}, teacher=teacher)
    train_at({"resume": str(Path(recipe["save_dir"]) / "run_last.pth"), "epochs": 2}, teacher=teacher)
    said = (Path(recipe["log_dir"]) / "run.log").read_text()
    assert "epochs is 2, and was 1: alpha_schedule 'warmup' and beta_schedule 'linear' are stretched" in said
