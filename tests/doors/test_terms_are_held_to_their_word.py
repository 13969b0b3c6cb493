"""What a stranger's term, map, optimizer or callback may do wrong in silence is done right, or refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from support import ranks
from support.runs import tensors
from support.transformers import tiny_vit
from torch import nn
from torch.nn import functional as F

from attention_transfer import (
    Callback,
    ConfigError,
    LossTerm,
    MapFunction,
    Needs,
    compute_at_loss,
    create_model,
    train_at,
    train_epoch,
    validate,
)
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.config import resolve_config
from attention_transfer.distributed import AcceleratedRuntime, Runtime, leave_process_group
from attention_transfer.features.gradients import GRADIENT
from attention_transfer.training.setup.terms import build_terms


class Reporting(LossTerm):
    """Reports what it is told to, beside its own value."""

    name = "reporting"

    def __init__(self, weight=1.0, needs=None, **scalars):
        super().__init__(weight, needs)
        self.scalars = scalars

    def forward(self, inputs):
        return {self.name: inputs.logits.float().square().mean(), **self.scalars}


class Annealed(LossTerm):
    name = "annealed"

    def __init__(self):
        super().__init__(1.0, Needs(epoch=True))
        self.epochs = {True: [], False: []}

    def forward(self, inputs):
        self.epochs[self.training].append(inputs.epoch)
        return {self.name: inputs.logits.float().mean() * 0}


class Projected(LossTerm):
    """Has a layer with running statistics and weights of its own."""

    name = "projected"

    def __init__(self, weight=1.0):
        super().__init__(weight)
        self.norm = nn.BatchNorm1d(10)

    def forward(self, inputs):
        return {self.name: self.norm(inputs.logits.float()).square().mean()}


class Hint(LossTerm):
    name = "hint"

    def __init__(self):
        super().__init__(1.0, Needs(features=True))
        self.projector = nn.Conv2d(64, 64, 1)

    def forward(self, inputs):
        mine, theirs = inputs.student.stages("features")[-1], inputs.teacher.stages("features")[-1]
        return {self.name: F.mse_loss(self.projector(mine), theirs)}


@pytest.fixture
def recipe(settings):
    return {**settings, "model": "CifarResNet-8", "epochs": 2}


def small():
    torch.manual_seed(0)
    return create_model("CifarResNet-8", 10)


def batches(*sizes):
    images, labels = tensors(sum(sizes), classes=10)
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def sgd(network):
    return torch.optim.SGD(network.parameters(), 0.01)


@pytest.mark.parametrize("taken", ["loss", "accuracy", "classification", "kd", "attention", "lr"])
def test_a_scalar_that_would_overwrite_another_figure_is_refused(taken):
    term = Reporting(**{taken: torch.tensor(7.0)})
    with pytest.raises(ConfigError, match=f"reports '{taken}', which is taken"):
        validate(small(), None, batches(4), "cpu", terms=[term])


@pytest.mark.parametrize("odd", [1.0, torch.zeros(2), None])
def test_a_scalar_that_is_none_is_refused(odd):
    with pytest.raises(ConfigError, match="a dict of scalar tensors, one of them under its name 'reporting'; 'x' is"):
        validate(small(), None, batches(4), "cpu", terms=[Reporting(x=odd)])


def test_batches_that_report_different_scalars_are_refused():
    class Fickle(Reporting):
        def forward(self, inputs):
            return {**super().forward(inputs), f"of_{len(inputs.logits)}": inputs.logits.sum()}

    with pytest.raises(ConfigError, match=r"of_2 for this batch, and .*of_4 for those before"):
        validate(small(), None, batches(4, 2), "cpu", terms=[Fickle()])


@pytest.mark.slow
def test_a_term_is_told_the_epoch_in_validation_and_in_a_loop_of_ones_own(recipe):
    term = Annealed()
    train_at(recipe, terms=[term])
    assert set(term.epochs[False]) == {1.0, 2.0}
    assert min(term.epochs[True]) == 0.0
    assert 1.0 < max(term.epochs[True]) < 2.0
    own, network = Annealed(), small()
    for epoch in range(2):
        train_epoch(network, None, batches(4, 4), sgd(network), "cpu", terms=[own], epoch=epoch)
    validate(network, None, batches(4), "cpu", terms=[own], epoch=2)
    assert own.epochs == {True: [0.0, 0.5, 1.0, 1.5], False: [2.0]}


def test_a_terms_own_layers_are_in_the_mode_of_the_student():
    term, network = Projected(), small()
    validate(network, None, batches(4, 4), "cpu", terms=[term])
    assert term.norm.num_batches_tracked == 0
    assert term.training
    # and a batch of one image, which has no variance, is no error
    train_epoch(network, None, batches(4, 1), sgd(network), "cpu", terms=[term])
    assert term.norm.num_batches_tracked == 1


@pytest.mark.slow
def test_every_process_has_the_main_ones_weights_of_a_term(tmp_path):
    ranks.run(2, __file__, tmp_path)
    main, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert main["drawn"] != second["drawn"]
    assert torch.equal(main["weight"], second["weight"])
    assert torch.equal(main["running_mean"], second["running_mean"])


def build_in_a_process(folder):
    """A term of weights that each process draws for itself."""
    runtime = AcceleratedRuntime(resolve_config({"device": "cpu"}))
    torch.manual_seed(runtime.rank)
    term = Projected()
    nn.init.normal_(term.norm.weight)
    nn.init.normal_(term.norm.running_mean)
    drawn = float(term.norm.weight[0])
    build_terms([term], resolve_config({"device": "cpu"}), small(), None, None, runtime)
    state = {"drawn": drawn, "weight": term.norm.weight.detach(), "running_mean": term.norm.running_mean}
    torch.save(state, folder / f"{runtime.rank}.pt")
    leave_process_group()


def test_an_optimizer_without_a_terms_weights_is_refused_and_one_without_some_of_the_students_is_told(recipe, caplog):
    network = small()
    own = {"student": network, "terms": [Projected()]}
    with pytest.raises(ConfigError, match="lacks parameters of the loss terms"):
        train_at(recipe, **own, optimizer=lambda groups: sgd(network))
    term = Projected()
    before = term.norm.weight.detach().clone()
    head = list(network.linear.parameters())
    train_at(
        {**recipe, "epochs": 1},
        student=network,
        terms=[term],
        optimizer=lambda groups: torch.optim.SGD([*head, *groups[1]["params"]], 0.01),
    )
    left_out = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in head)
    assert f"all but {left_out} of the student's parameters" in caplog.text
    assert not torch.equal(term.norm.weight, before)


def test_two_maps_of_one_name_are_refused(recipe, teacher):
    def of(function):
        return MapFunction("mine", function)

    first = Reporting(needs=Needs(maps=(of(lambda x: x.float().square().amax(dim=1)),)))
    with pytest.raises(ConfigError, match="two different map functions are called 'mine'"):
        train_at(recipe, teacher=teacher, terms=[first], map_function=of(lambda x: x.float().square().mean(dim=1)))


def test_a_term_of_weight_0_reports_its_value_in_a_run_too(recipe, teacher):
    class Distance(Reporting):
        name = "distance"

        def forward(self, inputs):
            return {self.name: F.mse_loss(inputs.logits.float(), inputs.teacher.tensor("logits"))}

    record = train_at(recipe, teacher=teacher, terms=[Distance(0.0, Needs(logits=True))])["training_history"][0]
    assert record["train_distance"] > 0
    assert record["val_distance"] > 0


def test_a_terms_own_layers_take_the_features_of_a_student_in_bf16(recipe, teacher):
    results = train_at({**recipe, "epochs": 1, "precision": "bf16"}, teacher=teacher, terms=[Hint()])
    assert results["training_history"][0]["train_hint"] > 0


def test_a_term_of_the_inputs_gradient_is_zero_where_nothing_is_differentiated(teacher):
    class Sensitive(Reporting):
        name = "sensitive"

        def forward(self, inputs):
            return {self.name: inputs.student.tensor("input_gradient").square().mean()}

    images, labels = tensors(4, classes=10)
    term = Sensitive(1.0, Needs(input_gradient=True))
    assert compute_at_loss(small(), teacher, images, labels, {"beta": 0.0}, [term]).scalars["sensitive"] > 0
    figures = validate(small(), teacher, [(images, labels)], "cpu", {"beta": 0.0}, [term])
    assert figures["sensitive"] == 0


class Counting(Callback):
    def __init__(self):
        self.epochs = 0

    def epoch_completed(self, run, record, is_best):
        self.epochs += 1

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


def test_a_checkpoint_has_the_state_that_a_callback_has_after_its_epoch(recipe, tmp_path):
    train_at(recipe, callbacks=[Counting()])
    last = tmp_path / "checkpoints" / "run_last.pth"
    assert read_checkpoint(last)["training"]["stateful"]["the callback Counting"] == {"epochs": 2}
    resumed = Counting()
    train_at({"resume": str(last), "epochs": 3}, callbacks=[resumed])
    assert resumed.epochs == 3


@pytest.mark.parametrize(
    ("name", "there", "here"),
    [
        ("optimizer", torch.optim.AdamW, torch.optim.RAdam),
        ("optimizer", torch.optim.AdamW, None),
        ("scheduler", lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4), None),
        ("map_function", MapFunction("max of squares", lambda x: x.float().square().amax(dim=1)), None),
    ],
)
def test_a_run_does_not_go_on_with_another_optimizer_schedule_or_map(recipe, teacher, tmp_path, name, there, here):
    train_at({**recipe, "epochs": 1}, teacher=teacher, **{name: there})
    resume = {"resume": str(tmp_path / "checkpoints" / "run_last.pth"), "epochs": 2}
    with pytest.raises(ConfigError, match=rf"was trained with the {name.replace('_', ' ')} .*, but this run has"):
        train_at(resume, teacher=teacher, **({} if here is None else {name: here}))


def test_a_schedule_whose_steps_need_a_figure_is_refused_before_training(recipe, tmp_path):
    with pytest.raises(ConfigError, match="ReduceLROnPlateau, which needs a figure in each step"):
        train_at(recipe, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    assert not (tmp_path / "checkpoints" / "run_last.pth").exists()


if __name__ == "__main__":
    build_in_a_process(Path(sys.argv[1]))


class Flat(nn.Module):
    """Has neither stages nor attention."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))


@pytest.mark.parametrize(
    ("needs", "missing"),
    [(Needs(features=True), "features"), (Needs(attention=True), "attention_probabilities")],
)
def test_a_term_that_the_teacher_leaves_without_what_it_needs_is_refused_and_not_0(needs, missing):
    student = tiny_vit() if needs.attention else create_model("CifarResNet-8", 10)
    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    with pytest.raises(ConfigError, match=rf"'reporting' needs the teacher's {missing}, which this teacher does not"):
        compute_at_loss(student, Flat(), images, labels, {"beta": 0.0}, terms=[Reporting(1.0, needs)])
    losses = compute_at_loss(student, Flat(), images, labels, {"beta": 0.0}, terms=[Reporting(0.0, needs)])
    assert losses.scalars["reporting"] == 0


def test_layers_that_no_term_looks_at_are_refused():
    student, images = create_model("CifarResNet-8", 10), torch.rand(2, 3, 32, 32)
    settings = {"attention": "gradient", "layers": ("layer2",)}
    with pytest.raises(ConfigError, match=r"layers names layer2, but no term of the loss compares stages"):
        compute_at_loss(student, create_model("CifarResNet-8", 10), images, torch.tensor([0, 1]), settings)


def test_a_term_is_built_with_the_pairs_of_its_maps_whatever_they_are_of():
    class OfGradients(Reporting):
        def build(self, inputs):
            self.pairs = inputs.pairs_of(GRADIENT)

    term, config = OfGradients(1.0, Needs(maps=(GRADIENT,))), resolve_config({"image_size": 32})
    student, teacher = create_model("CifarResNet-8", 10), create_model("CifarResNet-8", 10)
    build_terms([term], config, student, teacher, torch.rand(2, 3, 32, 32), Runtime(torch.device("cpu")))
    assert [pair.size for pair in term.pairs] == [(8, 8)]
