"""Runs that distil logits in other ways: what is minimised, from memory, what is refused, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.runs import assert_same_weights, tensors, without_clock

from attention_transfer import ConfigError, compute_at_loss, create_at_config, create_model, train_at, train_epoch
from attention_transfer.logs import log_once
from attention_transfer.losses.logits.dist import relation_distillation_loss
from attention_transfer.losses.logits.dkd import decoupled_distillation_loss
from attention_transfer.losses.logits.kd import distillation_loss
from attention_transfer.losses.logits.standardization import standardized

pytestmark = pytest.mark.slow

ALPHA = {"alpha": 0.5, "beta": 0.0}
DKD = {**ALPHA, "logit_loss": "dkd", "dkd_warmup": 4.0}


@pytest.fixture
def recipe(settings):
    return {**settings, "model": "CifarResNet-8", "precision": "fp32", "teacher_precision": "fp32", "epochs": 2}


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return create_model("CifarResNet-8", 10).eval()


def log_of(recipe):
    return (Path(recipe["log_dir"]) / f"{recipe['experiment_name']}.log").read_text()


@pytest.mark.parametrize(
    "loss",
    [
        {"logit_loss": "dkd", "dkd_warmup": 0.0, "dkd_target": 1.5, "dkd_nontarget": 2.0},
        {"logit_loss": "dkd", "dkd_warmup": 0.0, "logit_standardization": True},
        {"logit_loss": "dist"},
        {"logit_standardization": True},
    ],
    ids=lambda loss: "-".join(map(str, loss.values())),
)
def test_the_settings_choose_what_is_reported_and_minimised_as_kd(student, teacher, loss):
    images, labels = tensors(6, classes=10, size=32)
    config = create_at_config(alpha=0.5, beta=0.0, temperature=3.0, **loss)
    losses = compute_at_loss(student, teacher, images, labels, config)
    sides = losses.logits, teacher.eval()(images)
    if config["logit_standardization"]:
        sides = standardized(sides[0]), standardized(sides[1])
    expected = {
        "kd": lambda: distillation_loss(*sides, 3.0),
        "dkd": lambda: decoupled_distillation_loss(*sides, labels, 3.0, config["dkd_target"], config["dkd_nontarget"]),
        "dist": lambda: relation_distillation_loss(*sides, 3.0),
    }[config["logit_loss"]]()
    torch.testing.assert_close(losses.kd, expected)
    torch.testing.assert_close(losses.total, losses.classification + 0.5 * expected)


@pytest.mark.parametrize("loss", [DKD, {**ALPHA, "logit_loss": "dist"}, {**ALPHA, "logit_standardization": True}])
def test_any_loss_of_logits_is_remembered_and_resumes_to_the_bit(recipe, teacher, tmp_path, loss):
    recipe = {**recipe, **loss, "kd_balance": "paper"}
    whole = train_at({**recipe, "experiment_name": "whole"}, teacher=teacher)
    assert "epoch 2: 80 images answered from memory, 0 by the teacher's network" in log_of(
        {**recipe, "experiment_name": "whole"}
    )
    train_at({**recipe, "experiment_name": "parted", "epochs": 1}, teacher=teacher)
    resumed = train_at({"resume": str(tmp_path / "checkpoints" / "parted_last.pth"), "epochs": 2}, teacher=teacher)
    assert without_clock(resumed["training_history"]) == without_clock(whole["training_history"])
    assert_same_weights(whole["model"], resumed["model"])
    assert whole["training_history"][0]["train_kd"] > 0


def test_in_the_papers_balance_cross_entropy_has_what_alpha_leaves(student, teacher):
    images, labels = tensors(6, classes=10, size=32)
    paper = {"alpha": 0.9, "beta": 10.0, "kd_balance": "paper"}
    losses = compute_at_loss(student, teacher, images, labels, paper)
    total = 0.1 * losses.classification + 0.9 * losses.kd + 10 * losses.attention
    torch.testing.assert_close(losses.total, total)
    alone = compute_at_loss(student, None, images, labels, paper)
    assert torch.equal(alone.total, alone.classification)  # nothing takes its place


def test_the_weight_of_dkd_rises_over_its_warm_up_and_its_value_is_told_unweighted(student, teacher):
    images, labels = tensors(6, classes=10, size=32)
    for epoch, share in ((0, 0.0), (1, 0.25), (2.5, 0.625), (4, 1.0), (9, 1.0)):
        losses = compute_at_loss(student, teacher, images, labels, DKD, epoch=epoch)
        torch.testing.assert_close(losses.total, losses.classification + 0.5 * share * losses.kd)
        assert losses.kd > 0


def test_a_loop_of_ones_own_says_its_epoch_where_a_weight_depends_on_it(student, teacher):
    images, labels = tensors(6, classes=10, size=32)
    with pytest.raises(ConfigError, match=r"weight of 'kd' changes .*dkd_warmup.* pass epoch="):
        compute_at_loss(student, teacher, images, labels, DKD)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    with pytest.raises(ConfigError, match="pass epoch="):
        train_epoch(student, teacher, [(images, labels)], optimizer, "cpu", DKD)
    assert compute_at_loss(student, teacher, images, labels, {**DKD, "alpha": 0.0}).kd > 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"alpha": 1.5, "kd_balance": "paper"}, "alpha is 1.5, above 1"),
        ({"logit_loss": "dist", "logit_standardization": True}, "goes with logit_loss 'kd' or 'dkd'"),
        ({"logit_loss": "crd"}, r"logit_loss is 'crd'.*kd \| dkd \| dist"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        create_at_config(**given)


def test_two_classes_are_not_standardised_and_are_said_to_have_no_second_part(caplog):
    log_once.cache_clear()
    images, labels = tensors(4, classes=2, size=32)
    one, other = (create_model("CifarResNet-8", 2) for _ in range(2))
    with pytest.raises(ConfigError, match="there are two classes"):
        compute_at_loss(one, other, images, labels, {**ALPHA, "logit_standardization": True})
    with caplog.at_level("INFO", "attention_transfer"):
        for _ in range(2):
            compute_at_loss(one, other, images, labels, {**DKD, "dkd_warmup": 0.0})
    assert sum("(NCKD) is 0" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"logit_loss": "dist"}, "logit_loss is 'dist', but alpha is 0: no logits are distilled"),
        ({"alpha": 0.5, "logit_loss": "dkd"}, "the weight of DKD reaches only 5 % of alpha"),
    ],
)
def test_a_setting_without_effect_is_warned_of(recipe, teacher, given, words):
    recipe = {**recipe, "epochs": 1, **given}
    train_at(recipe, teacher=teacher)
    assert words in log_of(recipe)
