"""Batch norm goes into the convolution before it where that changes nothing, and stays where it is anywhere else."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from attention_transfer import create_model
from attention_transfer.features.taps import Taps
from attention_transfer.modules import undisturbed
from attention_transfer.networks.registry import taps_of
from attention_transfer.teacher.folding import fold_batch_norm, foldable_pairs

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Tiny(nn.Module):
    """Convolution, batch norm, head; what is done between is left to those that inherit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def middle(self, x):
        return self.norm(self.conv(x))

    def forward(self, x):
        return self.head(F.relu(self.middle(x)).mean(dim=(2, 3)))


class ReadTwice(Tiny):
    def middle(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class ReadTwiceThroughAView(Tiny):
    def middle(self, x):
        y = self.conv(x)
        half = y[:, :4]
        return self.norm(y) + torch.cat([half, half], dim=1)


class ChangedInPlace(Tiny):
    def middle(self, x):
        return self.norm(F.relu_(self.conv(x)))


class TwoNorms(Tiny):
    def __init__(self):
        super().__init__()
        self.other = nn.BatchNorm2d(8)

    def middle(self, x):
        y = self.conv(x)
        return self.norm(y) + self.other(y)


class ConvTwice(Tiny):
    def middle(self, x):
        return self.conv(-x) + self.norm(self.conv(x))


class NormTwice(Tiny):
    def middle(self, x):
        return self.norm(torch.cat([x, x, x], dim=1)[:, :8]) + self.norm(self.conv(x))


class TwoNames(Tiny):
    def __init__(self):
        super().__init__()
        self.again = self.conv


class NormFirst(Tiny):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def middle(self, x):
        return self.conv(self.norm(x))


class NoStatistics(Tiny):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)


class Parametrized(Tiny):
    def __init__(self):
        super().__init__()
        parametrizations.weight_norm(self.conv)


class CalledBehindItsName(Tiny):
    """Folding loses nothing here but is not taken up: the network goes on calling the module that was replaced."""

    def __init__(self):
        super().__init__()
        self.__dict__["_calls"] = [self.norm]

    def middle(self, x):
        return self._calls[0](self.conv(x))


class ReadsItsNorm(Tiny):
    def middle(self, x):
        return super().middle(x) * self.norm.weight.mean()


class NotToBeCopied(Tiny):
    def __deepcopy__(self, memo):
        raise TypeError("one of a kind")


def lived_in(model):
    """The network with statistics, scales and shifts that are not those of a new one."""
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            if norm.running_var is not None:
                norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator) / 5)
                norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(norm.bias, -0.5, 0.5, generator=generator)
    return model


def everything(model, names):
    with undisturbed(model), Taps(model, names) as taps:
        logits = model(IMAGES)
    return [logits, *taps.features]


def norms_of(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [("ResNet18", 0), ("CifarResNet-8", 0), ("MultiBranchNet", 0), ("WideResNet-16-1", 7)],
)
def test_our_networks_say_the_same_when_folded(name, left, caplog):
    torch.manual_seed(0)
    model = lived_in(create_model(name, 10))
    before = copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.INFO):
        folded = fold_batch_norm(model, IMAGES, taps_of(model))
    norms = norms_of(model)
    assert norms_of(folded) == left
    assert caplog.messages == [f"teacher {name}: folded {norms - left} of {norms} batch norms into convolutions"]
    for mine, theirs in zip(everything(folded, taps_of(model)), everything(model, taps_of(model)), strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(not (module._forward_hooks or module._forward_pre_hooks) for module in folded.modules())


def test_a_convolution_with_one_batch_norm_behind_it_is_folded():
    model = lived_in(Tiny())
    folded = fold_batch_norm(model, IMAGES, ["norm"])
    assert isinstance(folded.norm, nn.Identity)
    for mine, theirs in zip(everything(folded, ["norm"]), everything(model, ["norm"]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        ReadTwice, ReadTwiceThroughAView, ChangedInPlace, TwoNorms, ConvTwice, NormTwice, TwoNames, NormFirst,
        NoStatistics, Parametrized,
    ],
)  # fmt: skip
def test_what_is_not_safe_is_not_folded(kind, caplog):
    model = lived_in(kind())
    assert foldable_pairs(model, IMAGES, []) == []
    with caplog.at_level(logging.INFO):
        assert fold_batch_norm(model, IMAGES, []) is model
    assert caplog.messages == [
        f"teacher {kind.__name__}: batch norm is not folded: it has none that can be folded safely"
    ]


def test_a_tapped_convolution_is_not_folded_also_where_the_tap_is_on_what_holds_it():
    model = lived_in(Tiny())
    model.conv = nn.Sequential(model.conv)
    assert len(foldable_pairs(model, IMAGES, ["norm"])) == 1
    assert foldable_pairs(model, IMAGES, ["conv.0"]) == []
    assert foldable_pairs(model, IMAGES, ["conv"]) == []


@pytest.mark.parametrize("name", ["conv", "norm"])
def test_modules_with_hooks_of_the_users_are_not_folded(name):
    model = Tiny()
    model.get_submodule(name).register_forward_hook(lambda module, args, output: None)
    assert foldable_pairs(model, IMAGES, []) == []


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (CalledBehindItsName, "folding changes what it puts out by"),
        (ReadsItsNorm, "AttributeError: 'Identity' object has no attribute 'weight'"),
        (NotToBeCopied, "TypeError: one of a kind"),
    ],
)
def test_what_a_pass_does_not_show_is_found_by_checking_on_images(kind, reason, caplog):
    model = lived_in(kind())
    assert len(foldable_pairs(model, IMAGES, [])) == 1
    with caplog.at_level(logging.INFO):
        assert fold_batch_norm(model, IMAGES, []) is model
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]


def test_folding_leaves_modes_and_hooks_as_they_were_and_goes_into_wrappers():
    model = lived_in(Tiny()).train()
    model.norm.eval()
    folded = fold_batch_norm(nn.DataParallel(model), IMAGES, ["norm"])
    assert isinstance(folded, Tiny)
    assert isinstance(folded.norm, nn.Identity)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(not (module._forward_hooks or module._forward_pre_hooks) for module in model.modules())
