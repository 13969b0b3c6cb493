"""The reductions of the attention loss and the weights of its stages, against NumPy, with their gradients."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.runs import tensors
from torch.nn import functional as F

from attention_transfer import ConfigError, compute_at_loss, create_at_config, create_model
from attention_transfer.losses.map_distance import map_distance
from benchmarks.terms.scale import scales


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).square()


def unit(maps: np.ndarray) -> np.ndarray:
    flat = maps.reshape(len(maps), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def numpy_distance(student, teacher, reduction):
    pooled = teacher.double().numpy().reshape(len(teacher), 3, 2, 5, 2).mean(axis=(2, 4))
    difference = unit(student.double().numpy()) - unit(pooled)
    if reduction == "paper":
        return np.linalg.norm(difference, axis=1).mean() / 2
    return (difference**2).sum(axis=1).mean() / (1 if reduction == "sum" else difference.shape[1])


@pytest.mark.parametrize("reduction", ["mean", "sum", "paper"])
def test_each_reduction_is_its_formula(reduction):
    student, teacher = random_maps(4, 3, 5), random_maps(4, 6, 10, seed=1)
    ours = map_distance(student, teacher, reduction=reduction)
    assert float(ours) == pytest.approx(numpy_distance(student, teacher, reduction), rel=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "paper"])
def test_gradients_of_each_reduction_are_those_of_finite_differences(reduction):
    student = random_maps(3, 4, 6).double().requires_grad_()
    teacher = random_maps(3, 8, 5, seed=1).double().requires_grad_()
    mask = torch.ones(3, 8, 5)
    mask[0, :3], mask[1] = 0, 0
    for covered in (None, mask):
        assert torch.autograd.gradcheck(
            lambda s, t, m=covered: map_distance(s, t, mask=m, reduction=reduction), [student, teacher]
        )


def test_equal_maps_have_no_gradient_in_the_papers_form():
    maps = random_maps(2, 4, 4)
    student = maps.clone().requires_grad_()
    loss = map_distance(student, maps, reduction="paper")
    loss.backward()
    assert loss == 0
    assert torch.equal(student.grad, torch.zeros_like(maps))


def test_far_maps_are_as_far_as_the_docstring_says():
    one = F.one_hot(torch.tensor([0, 3]), 16).view(2, 4, 4).float()
    other = F.one_hot(torch.tensor([5, 9]), 16).view(2, 4, 4).float()
    distances = [float(map_distance(one, other, reduction=reduction)) for reduction in ("mean", "sum", "paper")]
    assert distances == pytest.approx([2 / 16, 2, 2**0.5 / 2])


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return create_model("CifarResNet-8", 10).eval(), create_model("CifarResNet-14", 10).eval()


@pytest.fixture(scope="module")
def batch():
    return tensors(4, classes=10, size=32)


def test_stages_are_told_unweighted_and_attention_is_their_weighted_sum(networks, batch):
    plain = compute_at_loss(*networks, *batch, {})
    weighted = compute_at_loss(*networks, *batch, {"stage_weights": [2.0, 0.0, 0.5]})
    assert [float(x) for x in weighted.per_stage] == [float(x) for x in plain.per_stage]
    expected = 2 * plain.per_stage[0] + 0.5 * plain.per_stage[2]
    torch.testing.assert_close(weighted.attention, expected)
    torch.testing.assert_close(weighted.total, weighted.classification + 1000 * expected)


def test_a_reduction_is_chosen_by_its_setting(networks, batch):
    found = {
        reduction: compute_at_loss(*networks, *batch, {"attention_reduction": reduction}).per_stage
        for reduction in ("mean", "sum", "paper")
    }
    for stage, cells in enumerate((32 * 32, 16 * 16, 8 * 8)):
        torch.testing.assert_close(found["sum"][stage], cells * found["mean"][stage])
        # the mean of a root is at most the root of the mean
        assert 0 < found["paper"][stage] <= found["sum"][stage].sqrt() / 2


def test_as_many_weights_as_pairs_are_needed_and_both_numbers_are_named(networks, batch):
    for weights in ([1.0], [1.0, 1.0, 1.0, 1.0]):
        with pytest.raises(
            ConfigError, match=rf"stage_weights has {len(weights)} numbers, but 3 pairs .*32x32, 16x16, 8x8"
        ):
            compute_at_loss(*networks, *batch, {"stage_weights": weights})


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], []])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ConfigError, match="stage_weights"):
        create_at_config(stage_weights=weights)


def test_the_scales_that_the_page_tells_are_those_of_the_losses(networks, batch):
    student, teacher = copy.deepcopy(networks[0]), networks[1]
    found = scales(student, teacher, *batch)
    for name in ("mean", "sum", "paper"):
        losses = compute_at_loss(student, teacher, *batch, {"attention_reduction": name})
        assert found[name].loss == pytest.approx(losses.attention.item())
        losses.attention.backward()
        norm = torch.cat([weight.grad.flatten() for weight in student.parameters() if weight.grad is not None]).norm()
        assert found[name].gradient == pytest.approx(float(norm), rel=1e-5)
        student.zero_grad()
    assert found["cross-entropy"].loss > 0
