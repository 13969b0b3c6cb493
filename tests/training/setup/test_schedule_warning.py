"""A learning rate that fades early is told of before the run, with a step_size that would do better."""

from __future__ import annotations

import re

import pytest
import torch
from torch.optim.lr_scheduler import StepLR

from attention_transfer import train_at
from attention_transfer.config import Config
from attention_transfer.training.optim import make_scheduler
from attention_transfer.training.setup.schedule import faded_from, schedule_warning, warn_of_fading

SCHEDULES = [(120, 10, 0.1), (50, 10, 0.1), (31, 10, 0.1), (41, 10, 0.1), (30, 3, 0.5), (90, 1, 0.9), (9, 3, 1.0),
             (5, 2, 1e-3), (5, 2, 1e-4), (400, 40, 0.01)]  # fmt: skip


def rates(epochs, step_size, gamma, lr=0.01):
    """The learning rate of each epoch, as torch's own scheduler steps it in a run."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = StepLR(optimizer, step_size, gamma)
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_epoch_from_which_the_rate_has_faded_is_that_of_torchs_scheduler(schedule):
    found = rates(*schedule)
    faded = [epoch for epoch, rate in enumerate(found, 1) if rate < found[0] * 1e-3 * (1 - 1e-6)]
    assert faded_from(*schedule) == (faded[0] if faded else None)


def test_the_sentence_names_settings_epoch_rate_and_remedy():
    told = schedule_warning(0.01, 120, 10, 0.1)
    for word in ("step_size 10", "gamma 0.1", "from 0.01 to 1e-13", "120 epochs", "from epoch 41 on", "step_size=40"):
        assert word in told
    assert f"{rates(120, 10, 0.1)[-1]:.0e}" == "1e-13"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_step_size_that_is_proposed_needs_no_warning_and_is_none_where_none_is_needed(schedule):
    epochs, step_size, gamma = schedule
    told = schedule_warning(0.01, epochs, step_size, gamma)
    if told is not None:
        better = int(re.search(r"step_size=(\d+)\.$", told)[1])
        assert better > step_size
        assert faded_from(epochs, better, gamma) is None
        assert min(rates(epochs, better, gamma)) >= 0.01 * 1e-2 * (1 - 1e-6) or better == epochs


def test_the_defaults_and_a_short_tail_are_passed_over():
    default = Config()
    assert schedule_warning(default.lr, default.epochs, default.step_size, default.gamma) is None
    assert schedule_warning(0.1, 53, 10, 0.1) is None  # 13 epochs of 53 are below a quarter
    assert schedule_warning(0.1, 54, 10, 0.1) is not None


@pytest.mark.slow
def test_a_run_says_it_once_and_one_that_goes_on_says_that_it_cannot_be_changed_any_more(settings, tmp_path):
    settings = {**settings, "model": "CifarResNet-8", "epochs": 2, "step_size": 1, "gamma": 1e-4, "precision": "fp32"}
    train_at(settings)
    log = (tmp_path / "logs" / "run.log").read_text()
    (line,) = [line for line in log.splitlines() if "below a thousandth" in line]
    assert " WARNING " in line
    assert line.endswith("learnt; set step_size=2.")

    train_at({"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 3})
    lines = [line for line in (tmp_path / "logs" / "run.log").read_text().splitlines() if "below a thousandth" in line]
    assert len(lines) == 2
    assert lines[1].endswith("learnt; start a new run with step_size=3.")


def test_a_run_whose_rate_does_not_fade_says_nothing(settings, tmp_path):
    train_at({**settings, "model": "CifarResNet-8", "precision": "fp32"})
    assert "thousandth" not in (tmp_path / "logs" / "run.log").read_text()


@pytest.mark.parametrize("schedule", [{"step_size": 1}, {"schedule": "multistep", "milestones": (1, 2)}])
def test_the_rate_named_is_that_of_an_optimizer_of_ones_own(schedule, caplog):
    config = Config(**schedule, epochs=8, gamma=1e-4, lr=0.5, warmup_epochs=1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.003)
    make_scheduler(config, optimizer, batches=4)
    assert optimizer.param_groups[0]["lr"] < 0.003  # it warms up
    warn_of_fading(config, optimizer, goes_on=False)
    assert "cut lr from 0.003 to " in caplog.text
