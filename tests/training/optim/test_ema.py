"""An average of the student's weights: what it is, when it is measured, and whose weights are the best."""

from __future__ import annotations

import pytest
import torch
from support.runs import assert_same_weights
from torch import nn

from attention_transfer import ConfigError, create_model, evaluate_model, load_model, train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.cli.app import main
from attention_transfer.training.optim.ema import EmaWeights


@pytest.fixture
def settings(settings):
    return {**settings, "model": "CifarResNet-8", "batch_size": 20, "epochs": 3, "save_freq": 1, "ema": 0.9, "lr": 0.05}


@pytest.mark.slow
def test_it_averages_weights_and_statistics_with_a_decay_that_warms_up():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema, expected = EmaWeights(student, 0.7), {key: value.clone() for key, value in student.state_dict().items()}
    for step in range(1, 12):
        with torch.no_grad():
            student(torch.randn(4, 3))
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update(student)
        decay = min(0.7, 1 - (1 + (step - 1)) ** (-2 / 3))
        for key, value in student.state_dict().items():
            kept = expected[key]
            expected[key] = decay * kept + (1 - decay) * value if value.is_floating_point() else value.clone()
    for key, value in ema.network.state_dict().items():
        torch.testing.assert_close(value, expected[key])


@pytest.mark.slow
def test_without_it_nothing_is_averaged_and_files_say_whose_weights_they_hold(settings, tmp_path):
    train_at({**settings, "ema": None, "epochs": 1})
    best = read_checkpoint(tmp_path / "checkpoints" / "run_best.pth")
    assert (best["weights"], best["training"]["ema"]) == ("student", None)


@pytest.fixture
def seen(monkeypatch):
    """The state of the student and of its average after every step, as a run has them."""
    from attention_transfer.training.checkpointing.state import RunState

    states, original = [], RunState.after_update

    def after_update(state):
        original(state)
        copied = [
            {key: value.clone() for key, value in network.state_dict().items()}
            for network in (state.student, state.ema.network)
        ]
        states.append(copied)

    monkeypatch.setattr(RunState, "after_update", after_update)
    return states


def is_same(weights, others):
    return all(torch.equal(value, others[key]) for key, value in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize(("best_weights", "whose"), [("auto", "ema"), ("ema", "ema"), ("student", "student")])
def test_model_and_best_file_hold_the_weights_that_the_setting_names(
    settings, tmp_path, seen, capsys, best_weights, whose
):
    results = train_at({**settings, "best_weights": best_weights})
    last = read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")
    best = read_checkpoint(tmp_path / "checkpoints" / "run_best.pth")
    number = 4 * best["epoch"] - 1
    of_student, of_ema = seen[number]
    assert not is_same(of_student, of_ema)
    expected = {"ema": of_ema, "student": of_student}[whose]
    assert best["weights"] == whose
    assert is_same(best["model_state_dict"], expected)
    assert is_same(results["model"].state_dict(), expected)
    loaded = load_model(tmp_path / "checkpoints" / "run_best.pth", "cpu")
    assert is_same(loaded["model"].state_dict(), expected)
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path / "checkpoints" / "run_best.pth")])
    assert ("the average of the student's (ema)" in capsys.readouterr().out) == (whose == "ema")
    other = last["training"]["ema"]["other_weights"]
    assert is_same(other, seen[-1][0 if whose == "ema" else 1])
    log = (tmp_path / "logs" / "run.log").read_text()
    assert f"weights after epoch {best['epoch']}, those of the {whose}" in log


@pytest.mark.slow
def test_validation_measures_the_average_from_its_first_epoch_on(settings, tmp_path):
    from attention_transfer.data.loading.loaders import prepare_dataloaders

    results = train_at({**settings, "ema_start": 2, "alpha": 0.0})
    _, val, _ = prepare_dataloaders(settings["data_dir"], 20, num_workers=0, image_size=settings["image_size"])
    for epoch, whose in ((1, "student"), (2, "ema"), (3, "ema")):
        path = tmp_path / "checkpoints" / f"run_epoch_{epoch}.pth"
        assert read_checkpoint(path)["weights"] == whose
        measured = evaluate_model(load_model(path, "cpu")["model"], val)
        assert measured["accuracy"] == pytest.approx(results["training_history"][epoch - 1]["val_accuracy"])


@pytest.mark.slow
def test_where_the_students_weights_count_the_average_is_measured_beside_them(settings, tmp_path):
    history = train_at({**settings, "best_weights": "student", "ema_start": 2})["training_history"]
    assert ["val_ema_accuracy" in record for record in history] == [False, True, True]
    assert history[2]["val_ema_loss"] != history[2]["val_loss"]
    assert "val_ema_loss" not in train_at({**settings, "experiment_name": "other"})["training_history"][2]


@pytest.mark.slow
def test_training_is_the_same_with_and_without_an_average(settings):
    def student():
        torch.manual_seed(3)
        return create_model("CifarResNet-8", 10)

    with_ema = train_at({**settings, "best_weights": "student"}, student=student())
    without = train_at({**settings, "ema": None, "experiment_name": "other"}, student=student())
    assert_same_weights(with_ema["model"], without["model"])


class Locked(nn.Module):
    """A network that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.body = create_model("CifarResNet-8", 10)

    def forward(self, x):
        return self.body(x)

    def __deepcopy__(self, memo):
        raise TypeError("a lock cannot be pickled")


def test_a_student_that_cannot_be_averaged_is_refused():
    with pytest.raises(ConfigError, match=r"Locked cannot be copied \(TypeError: a lock"):
        EmaWeights(Locked(), 0.9)
    with pytest.raises(ConfigError, match=r"round to nothing in torch\.bfloat16"):
        EmaWeights(nn.Linear(2, 2).to(torch.bfloat16), 0.9)


def test_no_hook_of_the_run_is_left_on_the_average_or_copied_with_the_student(settings, teacher, monkeypatch):
    made = []
    original = EmaWeights.__init__

    def init(self, student, decay):
        assert not any(module._forward_hooks for module in student.modules())
        original(self, student, decay)
        made.append(self.network)

    monkeypatch.setattr(EmaWeights, "__init__", init)
    train_at({**settings, "epochs": 1}, teacher=teacher)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made[0].modules())
