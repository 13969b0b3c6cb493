"""Trackers: a run in MLflow's local store, continued where it was, and closed however it ends."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from support import warm
from support.runs import without_clock

from attention_transfer import Callback, ConfigError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed, in whose local store runs are looked up")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """MLflow's client of a store in a folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    yield mlflow.MlflowClient()
    assert mlflow.active_run() is None


@pytest.fixture
def settings(settings):
    return {**settings, "model": "CifarResNet-8", "batch_size": 20, "epochs": 3, "trackers": ["mlflow"]}


def runs(store):
    [experiment] = [each for each in store.search_experiments() if each.name == "attention-transfer"]
    return store.search_runs([experiment.experiment_id])


def points(store, run, figure):
    return [(point.step, point.value) for point in store.get_metric_history(run.info.run_id, figure)]


def student():
    torch.manual_seed(5)
    return create_model("CifarResNet-8", 10)


class StopAfter(Callback):
    def __init__(self, batches, error=None):
        self.left, self.error = batches, error

    def batch_trained(self, run, batch, meter):
        self.left -= 1
        if self.left == 0 and self.error is None:
            os.kill(os.getpid(), signal.SIGTERM)
        elif self.left == 0:
            raise self.error


@pytest.mark.slow
def test_settings_and_every_figure_of_every_epoch_are_there(settings, store):
    results = train_at(settings)
    [run] = runs(store)
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["lr"] == "0.01"
    assert run.data.params["crop_scale"] == "(0.6, 1.0)"
    for figure in results["training_history"][0]:
        expected = [(record["epoch"], record[figure]) for record in results["training_history"]]
        assert points(store, run, figure) == expected, figure
    assert run.data.metrics["best_accuracy"] == results["best_accuracy"]
    assert run.data.metrics["test_accuracy"] == results["test_results"]["accuracy"]


@pytest.mark.slow
@pytest.mark.speed
@pytest.mark.parametrize("batches", [2, 6])
def test_a_resumed_run_continues_the_run_of_its_tracker(settings, store, tmp_path, batches):
    whole = train_at({**settings, "trackers": [], "experiment_name": "whole"}, student=student())
    train_at(settings, student=student(), callbacks=[StopAfter(batches)])
    [stopped] = runs(store)
    assert stopped.info.status == "KILLED"
    resumed = train_at({**settings, "resume": "auto"}, student=student())
    [run] = runs(store)
    assert (run.info.run_id, run.info.status) == (stopped.info.run_id, "FINISHED")
    assert without_clock(resumed["training_history"]) == without_clock(whole["training_history"])
    for figure in ("train_loss", "val_accuracy", "lr"):
        expected = [(record["epoch"], record[figure]) for record in resumed["training_history"]]
        assert points(store, run, figure) == expected
    state = read_checkpoint(tmp_path / "checkpoints" / "run_final.pth")["training"]["stateful"]["the callback Trackers"]
    assert state == {"experiment": "run", "runs": {"mlflow": {"run_id": run.info.run_id, "epochs": 3}}}


@pytest.mark.slow
def test_a_run_that_gets_a_tracker_late_sends_it_all_that_was(settings, store):
    train_at({**settings, "epochs": 1, "trackers": []})
    results = train_at({**settings, "epochs": 2, "resume": "auto"})
    [run] = runs(store)
    assert points(store, run, "val_loss") == [(i + 1, r["val_loss"]) for i, r in enumerate(results["training_history"])]


@pytest.mark.slow
def test_another_run_that_starts_from_a_checkpoint_has_a_run_of_its_own(settings, store, tmp_path):
    train_at({**settings, "epochs": 1})
    train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2, "experiment_name": "branch"})
    lengths = {run.info.run_name: len(points(store, run, "val_loss")) for run in runs(store)}
    assert lengths == {"run": 1, "branch": 2}


def test_a_run_that_fails_is_a_failed_one_there_and_nothing_stays_open(settings, store):
    train_at({**settings, "epochs": 1, "experiment_name": "warm"})
    before = threading.enumerate(), open_files()
    with pytest.raises(ZeroDivisionError):
        train_at(settings, callbacks=[StopAfter(2, ZeroDivisionError("on purpose"))])
    assert {run.info.run_name: run.info.status for run in runs(store)} == {"warm": "FINISHED", "run": "FAILED"}
    assert (threading.enumerate(), open_files()) == before


def open_files():
    folder = Path("/proc/self/fd")
    return sorted(str(link.readlink()) for link in folder.iterdir() if link.is_symlink()) if folder.exists() else []


def test_a_run_within_one_of_the_users_is_nested_and_leaves_it_active(settings, store):
    with mlflow.start_run(run_name="outer") as outer:
        train_at({**settings, "epochs": 1})
        assert mlflow.active_run().info.run_id == outer.info.run_id
    [run] = runs(store)
    assert run.data.tags["mlflow.parentRunId"] == outer.info.run_id


def test_a_server_that_is_away_for_an_epoch_gets_it_with_the_next(settings, store, monkeypatch, tmp_path):
    log_metrics, away = mlflow.log_metrics, [True]

    def log(*arguments, **options):
        if away:
            away.pop()
            raise ConnectionError("the server is away")
        log_metrics(*arguments, **options)

    monkeypatch.setattr(mlflow, "log_metrics", log)
    assert train_at(settings)["status"] == "finished"
    [run] = runs(store)
    assert [step for step, _ in points(store, run, "val_loss")] == [1, 2, 3]
    told = "the tracker mlflow did not take epoch 1, which is sent again with the next: ConnectionError: the server is"
    assert told in (tmp_path / "logs" / "run.log").read_text()


def test_a_tracker_that_cannot_be_started_is_an_error(settings, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://here")
    with pytest.raises(ConfigError, match=r"trackers has 'mlflow', which cannot be started: .*or leave mlflow out"):
        train_at(settings)


def test_a_missing_package_is_named(settings):
    missing = [name for name in ("wandb", "comet_ml", "clearml", "aim") if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("the packages of all trackers are installed")
    with pytest.raises(ConfigError, match=f"trackers has '{missing[0]}', but the package {missing[0]} is not inst"):
        train_at({**settings, "trackers": missing})


@pytest.mark.parametrize("trackers", [["tensorboard"], ["mlflow", "mlflow"], "mlflow"])
def test_other_names_and_repeated_ones_are_refused(settings, trackers):
    with pytest.raises(ConfigError, match=r"trackers is .*allowed: list of wandb \| mlflow \| comet_ml"):
        train_at({**settings, "trackers": trackers})


@pytest.mark.slow
def test_no_tracker_is_imported_unless_it_is_asked_for():
    look = "print(sorted({'mlflow', 'wandb', 'aim'} & set(sys.modules)))"
    done = warm.run("-c", f"import sys, attention_transfer.training.train; {look}")
    assert done.stdout.strip() == "[]", done.stderr
