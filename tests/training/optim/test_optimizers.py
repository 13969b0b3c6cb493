"""The optimizer by its name: torch's SGD as ever, timm's and torch's others, and what is refused before training."""

from __future__ import annotations

import io

import pytest
import timm.optim
import torch
from torch import nn

from attention_transfer import ConfigError, create_model, train_at
from attention_transfer.config import Config
from attention_transfer.plain import check_plain
from attention_transfer.training.optim import make_optimizer, parameter_groups
from attention_transfer.training.optim.optimizers import optimizer_in_words
from attention_transfer.training.optim.recipe import check_recipe


def network():
    torch.manual_seed(0)
    return create_model("CifarResNet-8", 10)


def made(student=None, of_terms=(), **settings):
    config = Config(**settings)
    return make_optimizer(config, parameter_groups(student or network(), of_terms, config))


def test_the_default_is_torchs_sgd_over_one_group():
    optimizer = made()
    expected = torch.optim.SGD([{"params": list(network().parameters())}], lr=0.01, momentum=0.9, weight_decay=5e-4)
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.defaults == expected.defaults
    assert optimizer.state_dict() == expected.state_dict()


def test_sgd_is_not_timms_which_has_nesterov_and_keeps_biases_from_decaying():
    assert made(optimizer="SGD").defaults["nesterov"] is made(optimizer="sgd").defaults["nesterov"] is False
    assert made(nesterov=True).defaults["nesterov"] is True
    assert made(optimizer="lookahead_sgd").param_groups[0]["nesterov"] is False


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", torch.optim.AdamW), ("AdamW", torch.optim.AdamW), ("lion", timm.optim.Lion),
        ("lamb", timm.optim.Lamb), ("rprop", torch.optim.Rprop), ("ASGD", torch.optim.ASGD),
        ("lookahead_adam", timm.optim.Lookahead),
    ],
)  # fmt: skip
def test_names_are_timms_and_torchs(name, kind):
    assert type(made(optimizer=name, lr=1e-3)) is kind


def test_a_class_name_has_torchs_defaults_and_a_lower_case_name_timms():
    assert made(optimizer="RMSprop").defaults["alpha"] == 0.99
    assert made(optimizer="rmsprop").defaults["alpha"] == 0.9


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": "adamww"}, "no optimizer is called 'adamww'.*Did you mean 'adamw'"),
        ({"optimizer": "adamw", "momentum": 0.5}, r"momentum is 0\.5, but optimizer 'adamw' \(AdamW\) has no momentum"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov is True, but optimizer 'adamw'"),
        ({"optimizer": "rprop", "weight_decay": 0.1}, "has no weight_decay"),
        ({"nesterov": True, "momentum": 0.0}, "'sgd' cannot be made: Nesterov momentum requires a momentum"),
        ({"optimizer": "lbfgs"}, "computes the loss several times"),
        ({"optimizer": "adahessian"}, "second derivatives"),
        ({"optimizer": "lookahead_kron"}, "a checkpoint lacks part of its state"),
        ({"optimizer": "Muon"}, "'Muon' cannot be made: Muon only supports 2D"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(settings, told):
    with pytest.raises(ConfigError, match=told):
        check_recipe(Config(**settings))


def test_the_refusal_comes_before_the_data_are_read(settings):
    with pytest.raises(ConfigError, match="no optimizer is called"):
        train_at({**settings, "data_dir": "nowhere", "optimizer": "nonesuch"})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lion"])
def test_without_decay_of_norms_only_matrices_and_filters_decay_and_terms_stay_in_their_group(optimizer):
    student, own = network(), nn.Parameter(torch.ones(3))
    trained = made(student, [own], optimizer=optimizer, weight_decay_norms=False, weight_decay=0.01)
    decays = {id(p): group["weight_decay"] for group in trained.param_groups for p in group["params"]}
    assert {decays[id(p)] for p in student.parameters() if p.dim() <= 1} == {0.0}
    assert {decays[id(p)] for p in student.parameters() if p.dim() > 1} == {0.01}
    assert [p is own for p in trained.param_groups[-1]["params"]] == [True]
    assert trained.param_groups[-1]["weight_decay"] == 0.01
    assert len(decays) == len(list(student.parameters())) + 1


def test_a_network_of_timms_names_what_else_does_not_decay():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=12, num_classes=10)
    trained = made(vit, optimizer="adamw", weight_decay_norms=False)
    without = {id(p) for group in trained.param_groups if not group["weight_decay"] for p in group["params"]}
    assert {id(vit.pos_embed), id(vit.cls_token)} <= without
    assert id(vit.head.weight) not in without


def test_the_log_names_class_and_settings_that_count():
    config = Config(optimizer="adamw", lr=1e-3, weight_decay_norms=False)
    told = optimizer_in_words(config, make_optimizer(config, parameter_groups(network(), (), config)))
    assert (
        told
        == "the optimizer is AdamW (torch.optim.adamw): lr 0.001, weight_decay 0.0005, no decay of norms and biases"
    )


@pytest.mark.parametrize("given", [{"optimizer": "adamw"}, {"nesterov": True}, {"weight_decay_norms": False}])
def test_an_optimizer_of_ones_own_and_one_by_settings_are_an_error(settings, given):
    with pytest.raises(ConfigError, match=f"an optimizer of yours, but {next(iter(given))} is set to"):
        train_at({**settings, **given}, optimizer=torch.optim.AdamW)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))


def steps(model, optimizer, numbers):
    for number in numbers:
        images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
        optimizer.step()


def can_be_made(name):
    try:
        made(small(), optimizer=name)
    except ConfigError:
        return False
    return True


NAMES = ["SGD", "RMSprop", "Rprop", "ASGD", "lookahead_adamw", *timm.optim.list_optimizers()]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if can_be_made(name)])
def test_every_optimizer_that_is_taken_goes_on_from_its_state_to_the_bit(name):
    model, part = small(), small()
    optimizer, stopped = made(model, optimizer=name, lr=1e-3), made(part, optimizer=name, lr=1e-3)
    steps(model, optimizer, range(12))
    steps(part, stopped, range(7))
    check_plain(stopped.state_dict())
    file = io.BytesIO()
    torch.save([part.state_dict(), stopped.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    rest = small()
    resumed = made(rest, optimizer=name, lr=1e-3)
    rest.load_state_dict(weights)
    resumed.load_state_dict(state)
    torch.manual_seed(99)
    steps(rest, resumed, range(7, 12))
    for key, value in model.state_dict().items():
        assert torch.equal(value, rest.state_dict()[key]), key
