"""Early stopping, and the figure by which the best epoch is chosen."""

from __future__ import annotations

import json

import pytest
import torch
from support.runs import assert_same_weights, bring, tensors, without_clock
from torch import nn

from attention_transfer import ConfigError, train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.training.checkpointing.best_epoch import is_better


def linear():
    """A network without batch norm: where nothing is learnt, every epoch measures the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 10))


@pytest.fixture
def standing_still(settings):
    return {**settings, "epochs": 9, "lr": 1e-12, "early_stopping": 2}


@pytest.mark.slow
def test_a_run_is_finished_after_so_many_epochs_without_a_better_one(standing_still, tmp_path):
    results = train_at(standing_still, student=linear())
    assert (results["status"], results["stopped_by"], len(results["training_history"])) == ("finished", None, 3)
    assert results["test_results"] is not None
    reason = results["finished_early"]
    accuracy = results["best_accuracy"]
    assert (
        reason == f"val_accuracy has not improved on the {accuracy:.4g} of epoch 1 for 2 epochs (early_stopping is 2)"
    )
    summary = json.loads((tmp_path / "logs" / "run_summary.json").read_text())
    assert (summary["finished_early"], summary["status"], summary["best_epoch"]) == (reason, "finished", 1)
    assert f"finished after 3 of 9 epochs: {reason}; best accuracy" in (tmp_path / "logs" / "run.log").read_text()
    assert read_checkpoint(tmp_path / "checkpoints" / "run_final.pth")["epoch"] == 3
    assert_same_weights(read_checkpoint_as_module(tmp_path / "checkpoints" / "run_best.pth"), results["model"])


def read_checkpoint_as_module(path):
    network = linear()
    network.load_state_dict(read_checkpoint(path)["model_state_dict"])
    return network


def test_a_run_that_gets_better_trains_all_its_epochs(settings):
    common = {**settings, "epochs": 4, "lr": 0.01, "best_by": "loss", "early_stopping": 1}
    results = train_at(common, student=linear())
    losses = [record["val_loss"] for record in results["training_history"]]
    assert losses == sorted(losses, reverse=True)
    assert (len(losses), results["finished_early"]) == (4, None)


def test_the_last_epoch_is_no_early_one(settings):
    results = train_at({**settings, "epochs": 2, "lr": 1e-12, "early_stopping": 1}, student=linear())
    assert (len(results["training_history"]), results["finished_early"]) == (2, None)


@pytest.mark.slow
def test_a_resumed_run_that_has_finished_early_says_so_and_trains_on_only_with_more_patience(standing_still, tmp_path):
    first = train_at(standing_still, student=linear())
    again = train_at({**standing_still, "resume": "auto"}, student=linear())
    assert without_clock(again["training_history"]) == without_clock(first["training_history"])
    assert again["finished_early"] == first["finished_early"]
    log = (tmp_path / "logs" / "run.log").read_text()
    assert f"the run is finished already, and does not go on: {first['finished_early']}" in log
    patient = {**standing_still, "early_stopping": 4}
    longer = train_at({**patient, "resume": "auto"}, student=linear())
    whole = train_at({**patient, "experiment_name": "whole"}, student=linear())
    assert len(longer["training_history"]) == 5
    assert without_clock(longer["training_history"]) == without_clock(whole["training_history"])
    assert read_checkpoint(tmp_path / "checkpoints" / "run_final.pth")["epoch"] == 5


RECORDS = [
    {"val_accuracy": 0.9, "val_balanced_accuracy": 0.5, "val_loss": 0.4},
    {"val_accuracy": 0.8, "val_balanced_accuracy": 0.7, "val_loss": 0.5},
    {"val_accuracy": 0.7, "val_balanced_accuracy": 0.6, "val_loss": 0.3},
]


@pytest.mark.parametrize(("best_by", "best"), [("accuracy", 0), ("balanced_accuracy", 1), ("loss", 2)])
def test_each_measure_has_its_own_best_epoch(best_by, best):
    for other in {0, 1, 2} - {best}:
        assert is_better(RECORDS[best], RECORDS[other], best_by)
        assert not is_better(RECORDS[other], RECORDS[best], best_by)
    assert not is_better(RECORDS[best], RECORDS[best], best_by)


@pytest.mark.parametrize("best_by", ["accuracy", "balanced_accuracy", "loss"])
def test_the_results_are_those_of_the_best_epoch_by_the_chosen_measure(settings, tmp_path, best_by):
    common = {**settings, "epochs": 4, "lr": 0.3, "momentum": 0.0, "best_by": best_by, "save_freq": 1}
    results = train_at(common, student=linear())
    figures = [record[f"val_{best_by}"] for record in results["training_history"]]
    best = figures.index(min(figures) if best_by == "loss" else max(figures)) + 1
    at_best = results["training_history"][best - 1]
    assert results["best_accuracy"] == at_best["val_accuracy"]
    assert results["best_balanced_accuracy"] == at_best["val_balanced_accuracy"]
    assert read_checkpoint(tmp_path / "checkpoints" / "run_best.pth")["epoch"] == best
    assert_same_weights(read_checkpoint_as_module(tmp_path / "checkpoints" / f"run_epoch_{best}.pth"), results["model"])


def test_a_resumed_run_keeps_its_measure(settings, tmp_path):
    train_at({**settings, "best_by": "loss"}, student=linear())
    with pytest.raises(ConfigError, match=r"best_by is 'balanced_accuracy', but .* was trained with 'loss'"):
        train_at({**settings, "epochs": 2, "best_by": "balanced_accuracy", "resume": "auto"}, student=linear())


@pytest.mark.parametrize("setting", [{"early_stopping": 3}, {"best_by": "loss"}])
def test_without_validation_there_is_nothing_to_go_by(settings, setting):
    images, labels = tensors()
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is .* without validation|there is no validation"):
        train_at({**bring(settings), **setting}, [(images, labels)])
