"""The networks that can be built by name: shapes, sizes, stages, gradients."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attention_transfer.catalogue import NETWORKS
from attention_transfer.features.taps import Taps
from attention_transfer.networks import registry
from attention_transfer.networks.families import multibranch
from attention_transfer.networks.families.cifar_resnet import BasicBlock
from attention_transfer.networks.families.multibranch import MultiBranchBlock
from attention_transfer.networks.families.wide_resnet import PreActivationBlock
from attention_transfer.networks.registry import create_model, taps_of

NAMES = ["MultiBranchNet", "ResNet18", "ResNet50", "CifarResNet-20", "WideResNet-16-2"]


def parameters_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model, side):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() // 2


def test_the_registry_holds_the_very_families_that_config_names():
    assert [family.pattern for family in NETWORKS] == [known.name_pattern for known in registry.architectures()]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_turns_images_into_logits(name):
    model = create_model(name, num_classes=7).eval()
    with torch.no_grad():
        logits = model(torch.rand(2, 3, 64, 48))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("name", NAMES)
def test_the_stages_of_a_network_have_the_strides_of_its_paper(name, side):
    model = create_model(name).eval()
    with torch.no_grad(), Taps(model, taps_of(model)) as taps:
        model(torch.rand(1, 3, side, side))
    strides = [(side // f.shape[2], side // f.shape[3]) for f in taps.features]
    expected = [4, 8, 16, 32] if len(strides) == 4 else [1, 2, 4]
    assert strides == [(stride, stride) for stride in expected]


@pytest.mark.parametrize("name", NAMES)
def test_no_later_layer_overwrites_a_stage(name):
    model = create_model(name)
    copies = []
    for tap in taps_of(model):
        model.get_submodule(tap).register_forward_hook(lambda module, args, output: copies.append(output.clone()))
    with Taps(model, taps_of(model)) as taps:
        model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert len(copies) == len(taps.features)
    assert all(torch.equal(kept, seen) for kept, seen in zip(copies, taps.features, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_backward_pass_reaches_every_parameter(name):
    torch.manual_seed(0)
    model = create_model(name)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
    untouched = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ResNet18", 11_181_642),
        ("ResNet50", 23_528_522),
        ("CifarResNet-20", 269_722),
        ("CifarResNet-56", 853_018),
        ("WideResNet-16-2", 691_674),
        ("WideResNet-40-1", 563_930),
    ],
)
def test_a_network_has_as_many_parameters_as_its_paper_says(name, parameters):
    assert parameters_of(create_model(name, num_classes=10)) == parameters


@pytest.mark.parametrize("name", ["MultiBranchNet", "CifarResNet-20", "WideResNet-16-2"])
def test_convolutions_of_our_networks_start_as_he_et_al_say(name):
    torch.manual_seed(0)
    convolutions = [module for module in create_model(name).modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        weight = convolution.weight
        assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.15)


def test_every_block_of_multibranchnet_has_three_parallel_branches_or_more():
    model = create_model("MultiBranchNet")
    blocks = [module for module in model.modules() if isinstance(module, MultiBranchBlock)]
    assert len(blocks) >= 4
    for block in blocks:
        width = block.fuse[0].in_channels
        outputs = [branch.eval()(torch.rand(1, width, 8, 8)) for branch in block.branches]
        assert len(outputs) >= 3
        assert sum(output.shape[1] for output in outputs) == width


def test_multibranchnet_is_as_small_as_its_docstring_says():
    documented = {
        what: int(number.replace(",", ""))
        for what, number in re.findall(r"^ +(parameters|multiply-adds) +([\d,]+)", multibranch.__doc__, re.MULTILINE)
    }
    model = create_model("MultiBranchNet", num_classes=10)
    assert documented == {"parameters": parameters_of(model), "multiply-adds": multiply_adds(model, side=128)}


def test_multibranchnet_has_at_most_three_million_parameters_and_a_quarter_of_resnet18s_work():
    model = create_model("MultiBranchNet")
    assert parameters_of(model) <= 3_000_000
    assert multiply_adds(model, side=128) <= multiply_adds(create_model("ResNet18"), side=128) / 4


def test_multibranchnet_sees_images_of_32_pixels():
    model = create_model("MultiBranchNet")
    with Taps(model, taps_of(model)) as taps:
        model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert [f.shape[2] for f in taps.features] == [8, 4, 2, 1]


def test_the_shortcut_of_a_cifar_resnet_drops_pixels_and_adds_channels_of_zeros():
    block = BasicBlock(16, 32, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_a_wide_block_that_keeps_the_shape_adds_its_very_input():
    block = PreActivationBlock(16, 16, stride=1).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)


def test_the_shortcut_of_a_wide_block_that_changes_the_shape_sees_the_activated_input():
    block = PreActivationBlock(16, 32, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)
    assert not block(-torch.ones(2, 16, 8, 8)).any()
