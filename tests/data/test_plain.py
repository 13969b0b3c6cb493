"""What a student may hold beside its weights: all that a checkpoint can give back, and nothing else."""

from __future__ import annotations

import pytest
import torch
from support.runs import assert_same_weights
from torch import nn

from attention_transfer import CheckpointError, DivergenceError, create_model, load_model, train_at
from attention_transfer.checkpoint import read_checkpoint, read_plain, weights_digest
from attention_transfer.cli.app import main
from attention_transfer.plain import check_plain

BATCHES = 4
"""An epoch."""


class Marked(torch.Tensor):
    """A tensor of a class of the user's."""


class Foreign:
    """A class of the user's."""


class Student(nn.Module):
    """CifarResNet-8 with something beside it."""

    def __init__(self, buffer=None):
        super().__init__()
        torch.manual_seed(3)
        self.body = create_model("CifarResNet-8", 10)
        if buffer is not None:
            self.register_buffer("mask", buffer)

    def forward(self, x):
        return self.body(x)


class Remembering(Student):
    """Counts its passes of training, in an extra state of plain data and tensors."""

    def __init__(self, extra=0):
        super().__init__()
        self.extra = extra
        self.seen = {"passes": 0, "mean": torch.zeros(3)}

    def forward(self, x):
        if self.training:
            self.seen["passes"] += 1
            self.seen["mean"] += x.mean((0, 2, 3)).detach()
        return self.body(x)

    def get_extra_state(self):
        return {**self.seen, "extra": self.extra}

    def set_extra_state(self, state):
        self.extra = state["extra"]
        self.seen = {"passes": state["passes"], "mean": state["mean"].clone()}


class Forgetful(Student):
    """Has an extra state that it does not take back."""

    def get_extra_state(self):
        return {"passes": 1}


@pytest.fixture
def settings(settings):
    return {**settings, "batch_size": 20, "precision": "fp32", "epochs": 2}


def refuse(settings, tmp_path, student, *words):
    with pytest.raises(CheckpointError) as raised:
        train_at(settings, student=student)
    for word in words:
        assert word in str(raised.value)
    assert not (tmp_path / "logs").exists()
    assert not list(tmp_path.rglob("*.pth"))


def test_a_buffer_of_a_class_of_the_users_is_refused_before_training_with_the_remedy(settings, tmp_path):
    student = Student(torch.zeros(3).as_subclass(Marked))
    refuse(settings, tmp_path, student, "Student.state_dict()['mask'] is a Marked", "as_subclass", "persistent=False")


def test_an_extra_state_with_an_object_is_refused_before_training(settings, tmp_path):
    refuse(settings, tmp_path, Remembering(Foreign()), "['_extra_state']['extra'] is a Foreign", "numbers, text")


def test_an_extra_state_that_the_student_does_not_take_back_is_refused_before_training(settings, tmp_path):
    refuse(settings, tmp_path, Forgetful(), "its own state_dict() does not fit Forgetful", "_extra_state")


def test_what_is_tacked_on_to_a_tensor_is_looked_at_as_well(tmp_path):
    tensor = torch.zeros(2)
    tensor.note = "plain"
    check_plain({"a": tensor})
    torch.save({"a": tensor}, tmp_path / "a.pth")
    assert torch.equal(read_plain(tmp_path / "a.pth")["a"], tensor)
    tensor.note = Foreign()
    with pytest.raises(CheckpointError, match=r"attributes of the checkpoint\['a'\]\['note'\] is a Foreign"):
        check_plain({"a": tensor})


def test_an_extra_state_of_plain_data_comes_back(settings, tmp_path, capsys):
    whole = train_at({**settings, "experiment_name": "whole"}, student=Remembering(extra="kept"))
    train_at({**settings, "epochs": 1}, student=Remembering(extra="kept"))
    resumed = train_at({**settings, "resume": "auto"}, student=Remembering())
    last = read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["model_state_dict"]["_extra_state"]
    assert (last["passes"], last["extra"]) == (resumed["training_history"][-1]["epoch"] * BATCHES, "kept")
    one, other = (results["model"].state_dict() for results in (whole, resumed))
    assert one["_extra_state"]["passes"] == other["_extra_state"]["passes"] > 0
    assert torch.equal(one["_extra_state"]["mean"], other["_extra_state"]["mean"])
    loaded = load_model(tmp_path / "checkpoints" / "run_best.pth", "cpu", model=Remembering())["model"]
    assert loaded.extra == "kept"
    assert_same_weights(loaded.body, resumed["model"].body)
    with pytest.raises(SystemExit, match="0"):
        main(["info", str(tmp_path / "checkpoints" / "run_best.pth")])
    assert "parameters and running statistics" in capsys.readouterr().out


def test_the_best_extra_state_stays_what_it_was_in_the_best_epoch(settings):
    results = train_at({**settings, "epochs": 3, "lr": 1e-9}, student=Remembering())
    accuracies = [record["val_accuracy"] for record in results["training_history"]]
    assert results["model"].seen["passes"] == BATCHES * (1 + accuracies.index(max(accuracies)))


def test_a_teacher_may_have_an_extra_state_too(settings):
    one, other = Remembering(extra=1), Remembering(extra=2)
    assert weights_digest(one) == weights_digest(Remembering(extra=1)) != weights_digest(other)
    assert train_at({**settings, "epochs": 1}, student=Student(), teacher=one)["status"] == "finished"


def test_a_mask_of_infinities_is_no_divergence(settings, tmp_path):
    mask = torch.full((2, 2), -torch.inf).triu(1)
    results = train_at(settings, student=Student(mask))
    assert results["status"] == "finished"
    assert torch.equal(read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["model_state_dict"]["mask"], mask)


@pytest.mark.parametrize("name", ["body.bn1.running_var", "body.conv1.weight"])
def test_a_weight_or_running_statistic_that_is_no_number_stops_the_run(settings, name):
    student, passes = Student(), []

    def spoil(module, arguments, output):
        if module.training:
            passes.append(1)
            if len(passes) == BATCHES:  # the last of the epoch: its loss is a number
                dict([*student.named_parameters(), *student.named_buffers()])[name].data.view(-1)[0] = torch.inf

    student.register_forward_hook(spoil)
    with pytest.raises(DivergenceError) as raised:
        train_at(settings, student=student)
    message = str(raised.value)
    assert (
        f"epoch 1, lr 0.01: {name} is no longer finite after batch {BATCHES} of the run; lower lr or beta." in message
    )
    assert message.count("0.01") == 1
