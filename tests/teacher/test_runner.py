"""The teacher says the same of an image to the last bit, whatever comes with it, and runs no further than needed."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attention_transfer import create_model
from attention_transfer.features.maps import SUM_OF_SQUARES, attention_map
from attention_transfer.features.signals import Needs
from attention_transfer.features.taps import Taps
from attention_transfer.modules import undisturbed
from attention_transfer.networks.registry import taps_of
from attention_transfer.teacher.runner import FrozenRunner, chunk_for

NETWORKS = [("ResNet18", 40), ("CifarResNet-20", 32), ("WideResNet-16-1", 32), ("MultiBranchNet", 40)]
MAPS = Needs(maps=(SUM_OF_SQUARES,))
FORMATS = [torch.contiguous_format, torch.channels_last]


def bfloat16():
    return torch.autocast("cpu", torch.bfloat16)


def some_images(count, size):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def network_of(name):
    torch.manual_seed(0)
    model = create_model(name, 10)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
    return model


def flat(output):
    return [*output.maps(SUM_OF_SQUARES), output.logits]


@pytest.fixture
def threads():
    """Sets the number of threads, and back again after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.speed
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("autocast", [nullcontext, bfloat16])
@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_the_bits_of_an_answer_depend_on_neither_place_nor_company_nor_threads(
    name, size, autocast, memory_format, threads
):
    model, images = network_of(name), some_images(21, size)
    names = taps_of(model)
    runner = FrozenRunner(model, names, images, autocast=autocast, chunk=16, memory_format=memory_format)
    assert runner.is_folded
    threads(1)
    whole = flat(runner.run(images))
    assert all(part.dtype == torch.float32 for part in whole)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    for count in (1, 2):
        threads(count)
        for picked in (order, torch.arange(20, 12, -1), torch.tensor([17])):
            for part, expected in zip(flat(runner.run(images[picked])), whole, strict=True):
                assert torch.equal(part, expected[picked])


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_it_says_what_the_network_says(name, size, fold):
    model, images = network_of(name), some_images(5, size)
    runner = FrozenRunner(model, taps_of(model), images, chunk=4, memory_format=torch.channels_last, fold=fold)
    with undisturbed(model), Taps(model, taps_of(model)) as taps:
        logits = model(images)
    expected = [*map(attention_map, taps.features), logits]
    for part, whole in zip(flat(runner.run(images)), expected, strict=True):
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-4)


def test_images_of_any_strides_are_answered_alike():
    model, images = network_of("CifarResNet-8"), some_images(7, 33)
    runner = FrozenRunner(model, taps_of(model), images, chunk=4)
    cut_out = torch.zeros(9, 3, 40, 40).to(memory_format=torch.channels_last)[1:8, :, 3:36, 5:38]
    cut_out.copy_(images)
    for part, whole in zip(flat(runner.run(cut_out)), flat(runner.run(images)), strict=True):
        assert torch.equal(part, whole)


def test_nothing_runs_after_the_deepest_tapped_stage_when_no_logits_are_needed():
    model, images = network_of("CifarResNet-8"), some_images(4, 32)
    whole = FrozenRunner(model, ["layer1", "layer2"], images, chunk=4)
    short = FrozenRunner(model, ["layer1", "layer2"], images, chunk=4, needs=MAPS)
    short.run(images)
    flops = []
    for runner in (whole, short):
        with FlopCounterMode(display=False) as counter:
            told = runner.run(images)
        flops.append(counter.get_total_flops())
        assert [tuple(stage.shape) for stage in told.maps(SUM_OF_SQUARES)] == [(4, 32, 32), (4, 16, 16)]
        assert (told.logits is None) == (runner is short)
    per_image = 2 * (3 * 16 * 9 * 32**2 + 2 * 16 * 16 * 9 * 32**2 + (16 * 32 + 32 * 32) * 9 * 16**2)
    assert flops[1] == 4 * per_image
    assert flops[0] > 1.3 * flops[1]
    for mine, theirs in zip(*(runner.run(images).maps(SUM_OF_SQUARES) for runner in (short, whole)), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("fold", [True, False])
def test_images_and_a_folded_networks_weights_have_the_memory_format_asked_for(fold):
    model, images = network_of("CifarResNet-8"), some_images(3, 32)
    runner = FrozenRunner(model, ["layer1"], images, memory_format=torch.channels_last, fold=fold)
    seen = []
    hook = runner.network.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    runner.run(images)
    hook.remove()
    assert seen[0].shape == (32, 3, 32, 32)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert runner.network.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last) == fold


def test_it_counts_the_images_that_it_answered():
    model, images = network_of("CifarResNet-8"), some_images(7, 32)
    runner = FrozenRunner(model, taps_of(model), images, chunk=4)
    assert runner.images_seen == 0
    for count in (7, 4, 1, 0):
        runner.run(images[:count])
    assert runner.images_seen == 12


def test_an_empty_batch_has_maps_and_logits_of_the_usual_sizes():
    model, images = network_of("CifarResNet-8"), some_images(4, 32)
    told = FrozenRunner(model, taps_of(model), images, chunk=4).run(images[:0])
    maps, logits = told.maps(SUM_OF_SQUARES), told.logits
    assert [tuple(stage.shape) for stage in maps] == [(0, 32, 32), (0, 16, 16), (0, 8, 8)]
    assert logits.shape == (0, 10)


def test_with_nothing_to_say_nothing_runs():
    model, images = network_of("CifarResNet-8"), some_images(4, 32)
    runner = FrozenRunner(model, [], images, needs=MAPS)
    with FlopCounterMode(display=False) as counter:
        assert runner.run(images) == {}
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("fold", [True, False])
def test_the_network_is_left_as_it_was_found_and_the_answer_can_be_trained_on(fold):
    model, images = network_of("CifarResNet-8").train(), some_images(4, 32)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    strides = [parameter.stride() for parameter in model.parameters()]
    runner = FrozenRunner(model, taps_of(model), images, memory_format=torch.channels_last, chunk=4, fold=fold)
    told = runner.run(images)
    maps, logits = told.maps(SUM_OF_SQUARES), told.logits
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [parameter.stride() for parameter in model.parameters()] == strides
    student = torch.ones(4, 32, 32, requires_grad=True)
    ((student * maps[0]).sum() + logits.sum()).backward()
    assert torch.equal(student.grad, maps[0])


def test_double_weights_take_float_images_and_give_double_outputs():
    model, images = network_of("CifarResNet-8").double(), some_images(3, 32)
    runner = FrozenRunner(model, taps_of(model), images, chunk=4)
    assert not runner.is_folded
    assert {part.dtype for part in flat(runner.run(images))} == {torch.float64}


def test_a_network_that_normalises_by_the_batch_gets_it_whole_and_unpadded(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)
    )
    images = some_images(6, 8)
    model(images)
    with caplog.at_level(logging.WARNING):
        runner = FrozenRunner(model, ["2"], images, chunk=4)
    assert runner.depends_on_batch
    assert "'1' has no running statistics" in caplog.text
    assert torch.equal(runner.run(images).logits, model.eval()(images))


def test_it_runs_in_the_number_format_that_it_is_given():
    model, images = network_of("CifarResNet-8"), some_images(4, 32)
    full, half = (
        flat(FrozenRunner(model, taps_of(model), images, chunk=4, autocast=autocast).run(images))
        for autocast in (nullcontext, bfloat16)
    )
    for exact, rounded in zip(full, half, strict=True):
        assert not torch.equal(exact, rounded)
        assert (exact - rounded).abs().max() < 0.05 * exact.abs().max()


def test_a_chunk_is_32_on_a_cpu_and_fits_the_batch_on_a_gpu():
    sizes = [1, 32, 33, 100, 128, 256, 1000]
    assert [chunk_for(torch.device("cpu"), size) for size in sizes] == [32] * 7
    assert [chunk_for(torch.device("cuda"), size) for size in sizes] == [32, 32, 64, 128, 128, 256, 256]
