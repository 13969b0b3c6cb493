"""Callbacks that a stranger writes: a tracker, and one that stops the run and has a state."""

from __future__ import annotations

import pytest

from attention_transfer import Callback, CheckpointError, ConfigError, train_at


class Tracker(Callback):
    """Writes down what it is told."""

    def __init__(self):
        self.events = []

    def run_started(self, run):
        self.events.append(("started", run.paths.name))

    def batch_trained(self, run, batch, meter):
        self.events.append(("batch", batch))

    def epoch_completed(self, run, record, is_best):
        self.events.append(("epoch", record["epoch"], record["val_loss"], is_best))

    def run_ended(self, run, status):
        self.events.append(("ended", status))

    def close(self):
        self.events.append("closed")


class StopAfter(Callback):
    """Ends the run after so many batches in all, which it counts over resumed runs."""

    def __init__(self, batches):
        self.batches = batches
        self.seen = 0

    def batch_trained(self, run, batch, meter):
        self.seen += 1
        if self.seen == self.batches:
            run.stop("it has seen enough")

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


@pytest.fixture
def recipe(settings):
    return {**settings, "model": "CifarResNet-8", "precision": "fp32", "epochs": 2, "batch_size": 45}


@pytest.mark.slow
def test_a_tracker_is_told_of_every_event_in_its_order(recipe):
    tracker = Tracker()
    history = train_at(recipe, callbacks=[tracker])["training_history"]
    epochs = [("epoch", record["epoch"], record["val_loss"]) for record in history]
    told = [event[:3] if event[0] == "epoch" else event for event in tracker.events]
    batches = [("batch", 0), ("batch", 1)]
    assert told == [("started", "run"), *batches, epochs[0], *batches, epochs[1], ("ended", "finished"), "closed"]


@pytest.mark.slow
def test_a_callback_ends_the_run_inside_an_epoch_and_its_state_is_restored(recipe, tmp_path):
    first = train_at(recipe, callbacks=[StopAfter(3)])
    assert (first["status"], first["stopped_by"]) == ("stopped", "it has seen enough")
    assert len(first["training_history"]) == 1
    again = StopAfter(4)
    second = train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth")}, callbacks=[again])
    assert second["stopped_by"] == "it has seen enough"
    assert again.seen == 4
    whole = train_at({**recipe, "experiment_name": "whole"})["training_history"]
    rest = train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth")}, callbacks=[StopAfter(99)])
    assert rest["status"] == "finished"
    assert rest["training_history"][-1]["train_loss"] == whole[-1]["train_loss"]


def test_a_state_that_nobody_takes_back_is_an_error(recipe, tmp_path):
    train_at(recipe, callbacks=[StopAfter(3)])
    with pytest.raises(CheckpointError, match="the state of the callback StopAfter, which this run does not have"):
        train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth")})


class Unkeepable(Callback):
    def state_dict(self):
        return {"handle": self}


def test_a_state_that_no_checkpoint_can_hold_is_refused_before_training(recipe, tmp_path):
    with pytest.raises(CheckpointError, match=r"the state of the callback Unkeepable\['handle'\] is a Unkeepable"):
        train_at(recipe, callbacks=[Unkeepable()])
    assert not list((tmp_path / "checkpoints").glob("*.pth"))


def test_something_else_than_a_callback_is_refused(recipe):
    with pytest.raises(ConfigError, match=r"callbacks has a type; .* a subclass of attention_transfer.Callback"):
        train_at(recipe, callbacks=[Tracker])


class EveryThird(Callback):
    batch_interval = 3

    def __init__(self):
        self.batches = []

    def batch_trained(self, run, batch, meter):
        self.batches.append((run.state.epoch, batch))


def test_a_callback_may_ask_for_every_third_batch_of_an_epoch_alone(recipe):
    every, third = Tracker(), EveryThird()
    train_at({**recipe, "batch_size": 13}, callbacks=[every, third])
    in_an_epoch = sum(event[0] == "batch" for event in every.events) // recipe["epochs"]
    assert in_an_epoch >= 6
    assert third.batches == [(epoch, batch) for epoch in range(2) for batch in range(2, in_an_epoch, 3)]


def test_an_interval_of_no_batches_is_refused_before_training(recipe):
    never = EveryThird()
    never.batch_interval = 0
    with pytest.raises(ConfigError, match=r"EveryThird.batch_interval is 0; it must be at least 1"):
        train_at(recipe, callbacks=[never])
    assert never.batches == []
