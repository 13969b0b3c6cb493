"""Loss terms that a stranger writes: from outside the package, each in one place, and nothing else has to know them."""

from __future__ import annotations

import pytest
import torch
from support.runs import assert_same_weights, without_clock
from torch import nn
from torch.nn import functional as F

from attention_transfer import ConfigError, LossTerm, Needs, train_at, validate
from attention_transfer.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow


class LogitDistance(LossTerm):
    """Mean squared difference of the logits, which a cache may hold."""

    name = "logit_distance"

    def __init__(self, weight):
        super().__init__(weight, Needs(logits=True))

    def forward(self, inputs):
        distance = F.mse_loss(inputs.logits.float(), inputs.teacher.tensor("logits"))
        return {self.name: distance, f"{self.name}_root": distance.sqrt()}


class Hint(LossTerm):
    """FitNet's hint: the deepest stage through a 1x1 projector that is trained along."""

    name = "hint"

    def __init__(self, weight):
        super().__init__(weight, Needs(features=True))
        self.projector = None

    def build(self, inputs):
        mine, theirs = inputs.student.stages("features")[-1], inputs.teacher.stages("features")[-1]
        self.projector = nn.Conv2d(mine.shape[1], theirs.shape[1], 1)

    def forward(self, inputs):
        mine, theirs = inputs.student.stages("features")[-1], inputs.teacher.stages("features")[-1]
        return {self.name: F.mse_loss(F.adaptive_avg_pool2d(self.projector(mine), theirs.shape[2:]), theirs)}


class SameGradient(LossTerm):
    """Student and teacher are to be as sensitive to the same pixels; the student's side is differentiated twice."""

    name = "same_gradient"

    def __init__(self, weight):
        super().__init__(weight, Needs(input_gradient=True, labels=True, epoch=True))
        self.epochs = []

    def forward(self, inputs):
        assert inputs.labels.dtype == torch.int64
        self.epochs.append(inputs.epoch)
        if "input_gradient" not in inputs.student:  # measured without gradients
            return {self.name: inputs.logits.new_zeros(())}
        return {self.name: F.mse_loss(inputs.student.tensor("input_gradient"), inputs.teacher.tensor("input_gradient"))}


class Confidence(LossTerm):
    """Needs nothing of a teacher."""

    name = "confidence"

    def forward(self, inputs):
        assert inputs.labels is None
        assert inputs.epoch is None
        return {self.name: inputs.logits.softmax(dim=1).amax(dim=1).mean()}


@pytest.fixture
def recipe(settings):
    return {**settings, "model": "CifarResNet-8", "precision": "fp32", "teacher_precision": "fp32", "epochs": 2}


def test_a_term_of_logits_is_minimised_reported_and_served_from_the_cache(recipe, teacher):
    plain = train_at({**recipe, "beta": 0.0}, teacher=teacher)
    results = train_at({**recipe, "beta": 0.0, "experiment_name": "own"}, teacher=teacher, terms=[LogitDistance(1.0)])
    history, log = results["training_history"], recipe["log_dir"]
    for record in history:
        for split in ("train", "val"):
            assert record[f"{split}_logit_distance"] > 0
            assert record[f"{split}_logit_distance_root"] > 0
            assert record[f"{split}_loss"] == pytest.approx(
                record[f"{split}_classification"] + record[f"{split}_logit_distance"], rel=1e-4
            )
    assert "train_logit_distance" not in plain["training_history"][0]
    with open(f"{log}/own.log") as file:  # noqa: PTH123
        said = file.read()
    assert "epoch 2: 80 images answered from memory, 0 by the teacher's network" in said
    assert "logit_distance" in said


def test_a_term_with_weights_of_its_own_is_trained_and_resumes_to_the_bit(recipe, teacher, tmp_path):
    whole_term, first, second = Hint(1.0), Hint(1.0), Hint(1.0)
    whole = train_at({**recipe, "experiment_name": "whole"}, teacher=teacher, terms=[whole_term])
    train_at({**recipe, "experiment_name": "parted", "epochs": 1}, teacher=teacher, terms=[first])
    last = tmp_path / "checkpoints" / "parted_last.pth"
    state = read_checkpoint(last)["training"]["stateful"]["the loss term hint"]
    assert torch.equal(state["projector.weight"], first.projector.weight.detach())
    resumed = train_at({"resume": str(last), "epochs": 2}, teacher=teacher, terms=[second])
    assert without_clock(whole["training_history"]) == without_clock(resumed["training_history"])
    assert_same_weights(whole["model"], resumed["model"])
    assert torch.equal(whole_term.projector.weight, second.projector.weight)
    assert not torch.equal(first.projector.weight, second.projector.weight)


def test_a_run_does_not_go_on_with_another_loss(recipe, teacher, tmp_path):
    train_at({**recipe, "epochs": 1}, teacher=teacher, terms=[LogitDistance(1.0)])
    resume = {"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2}
    for terms in ((), [LogitDistance(2.0)]):
        with pytest.raises(ConfigError, match=r"was trained with the loss terms .*1 logit_distance, but this run has"):
            train_at(resume, teacher=teacher, terms=terms)


def test_a_term_may_differentiate_the_student_twice_and_depend_on_labels_and_the_epoch(recipe, teacher):
    term = SameGradient(100.0)
    results = train_at({**recipe, "beta": 0.0}, teacher=teacher, terms=[term])
    values = [record["train_same_gradient"] for record in results["training_history"]]
    assert all(value > 0 for value in values)
    assert term.epochs[0] == 0.0
    assert 0 < term.epochs[1] < 1
    alone = train_at({**recipe, "beta": 0.0, "experiment_name": "without"}, teacher=teacher)
    assert any(
        not torch.equal(value, alone["model"].state_dict()[key]) for key, value in results["model"].state_dict().items()
    )


def test_a_term_that_needs_no_teacher_trains_without_one(recipe):
    results = train_at(recipe, terms=[Confidence(0.5)])
    record = results["training_history"][-1]
    assert record["train_loss"] == pytest.approx(
        record["train_classification"] + 0.5 * record["train_confidence"], rel=1e-4
    )
    images = [(torch.rand(4, 3, 32, 32), torch.arange(4))]
    assert validate(results["model"], None, images, "cpu", terms=[Confidence(0.5)])["confidence"] > 0


class Nameless(LossTerm):
    name = "not a name"


class NoScalar(Confidence):
    def forward(self, inputs):
        return {self.name: inputs.logits}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: [LogitDistance(1.0)], "needs the teacher's logits, but there is no teacher"),
        (lambda: [Confidence(1.0), Confidence(2.0)], "'confidence', which is taken"),
        (lambda: [Confidence(-1.0)], "must be at least 0"),
        (lambda: [Nameless(1.0)], "must be an identifier"),
        (lambda: [nn.Identity()], "a subclass of attention_transfer.LossTerm"),
        (lambda: [NoScalar(1.0)], "a dict of scalar tensors, one of them under its name 'confidence'"),
    ],
)
def test_a_term_that_cannot_work_is_refused_with_a_sentence(recipe, make, words):
    with pytest.raises(ConfigError, match=words):
        train_at(recipe, terms=make())
