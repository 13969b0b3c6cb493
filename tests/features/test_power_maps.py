"""F_sum^p and F_max^p against their formulas in NumPy, in every format, with their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attention_transfer.features.maps import SUM_OF_SQUARES, attention_map, normalize
from attention_transfer.features.power_maps import power_map
from attention_transfer.losses.map_distance import map_distance

POWERS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 7.0, 16.0, 20.0)
KINDS = [(kind, power) for kind in ("sum", "max") for power in POWERS]


def random_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def numpy_map(features: torch.Tensor, kind: str, power: float) -> np.ndarray:
    """Paper, section 3.1, as it is written: no scaling, in double precision; [B, H W] of norm 1."""
    powers = np.abs(features.double().numpy()) ** power
    maps = (powers.sum(axis=1) if kind == "sum" else powers.max(axis=1)).reshape(len(features), -1)
    return maps / np.linalg.norm(maps, axis=1, keepdims=True)


@pytest.mark.parametrize(("kind", "power"), KINDS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_map_is_the_papers_up_to_its_scale(kind, power, memory_format):
    x = random_features(3, 16, 7, 5).contiguous(memory_format=memory_format)
    ours = power_map(kind, power)(x)
    assert ours.shape == (3, 7, 5)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(normalize(ours).flatten(1).numpy(), numpy_map(x, kind, power), rtol=3e-5, atol=1e-7)


@pytest.mark.parametrize(("kind", "power"), KINDS)
def test_the_gradient_of_the_distance_is_that_of_finite_differences(kind, power):
    function, target = power_map(kind, power), attention_map(random_features(2, 3, 4, 4, seed=1).double())
    student = random_features(2, 3, 4, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: map_distance(function(x), target), [student])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kind", "power"), [("sum", 1.0), ("sum", 3.0), ("sum", 2.7), ("sum", 1.5), ("max", 2.0), ("max", 3.0)]
)
@pytest.mark.parametrize("shape", [(3, 8, 6, 5), (5, 64, 64, 64)], ids=["small", "several pieces"])
def test_loss_and_gradient_are_exact_in_every_format(shape, kind, power, memory_format, dtype):
    x = random_features(*shape).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    target = attention_map(random_features(*shape, seed=1))
    ours = map_distance(power_map(kind, power)(x), target)
    ours.backward()
    exact = x.detach().double().requires_grad_()
    powers = exact.abs() ** power
    maps = powers.sum(dim=1) if kind == "sum" else powers.amax(dim=1)
    expected = (normalize(maps) - target).square().mean()
    expected.backward()
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=0)
    assert x.grad.dtype == dtype
    assert x.grad.is_contiguous(memory_format=memory_format)
    rounding = max(torch.finfo(dtype).eps, 2e-6)
    smallest = 6e-8 if dtype == torch.float16 else 0  # below it float16 has no numbers
    largest = float(exact.grad.abs().max())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=rounding, atol=rounding * largest + smallest)


@pytest.mark.parametrize("scale", [1e-10, 1e15])
def test_high_powers_neither_overflow_nor_vanish(scale):
    x = (scale * random_features(2, 3, 4, 4)).requires_grad_()
    for kind in ("sum", "max"):
        maps = power_map(kind, 8.0)(x)
        np.testing.assert_allclose(normalize(maps.detach()).flatten(1), numpy_map(x.detach(), kind, 8.0), rtol=1e-4)
        map_distance(maps, random_features(2, 4, 4, seed=1).abs()).backward()
        assert x.grad.isfinite().all()
        assert x.grad.abs().sum() > 0


def test_each_image_is_scaled_by_itself():
    x = random_features(2, 3, 4, 4)
    loud = torch.cat([x, 1e6 * x])
    for kind in ("sum", "max"):
        torch.testing.assert_close(power_map(kind, 4.0)(loud)[:2], power_map(kind, 4.0)(loud)[2:])


@pytest.mark.parametrize(("kind", "power"), KINDS)
def test_features_that_are_all_zero_give_a_zero_map_and_no_gradient(kind, power):
    for dtype in (torch.float16, torch.float32):
        x = torch.zeros(2, 3, 4, 4, dtype=dtype, requires_grad=True)
        maps = power_map(kind, power)(x)
        map_distance(maps, random_features(2, 4, 4).abs()).backward()
        assert torch.equal(maps, torch.zeros(2, 4, 4))
        assert torch.equal(x.grad, torch.zeros_like(x))


def test_channels_that_share_the_maximum_share_its_gradient():
    x = torch.tensor([3.0, -3.0, 1.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 2).requires_grad_()
    power_map("max", 1.0)(x)[0, 0, 0].backward()
    torch.testing.assert_close(x.grad[0, :, 0, 0], torch.tensor([0.5, -0.5, 0.0]) / 3)
    assert torch.equal(x.grad[0, :, 0, 1], torch.zeros(3))


def test_features_that_are_not_finite_give_no_finite_map():
    for bad in (float("nan"), float("inf")):
        x = random_features(1, 3, 4, 4)
        x[0, 1, 2, 3] = bad
        for kind in ("sum", "max"):
            assert not power_map(kind, 3.0)(x).isfinite().all()


def test_the_default_is_todays_map_to_the_bit_under_its_name():
    assert power_map("sum", 2.0) is SUM_OF_SQUARES
    assert SUM_OF_SQUARES.name == "mean of squares over channels"  # part of the cache keys of earlier versions


def test_equal_settings_are_one_function_and_others_have_other_names():
    assert power_map("max", 2) == power_map("max", 2.0)
    names = {power_map(kind, power).name for kind in ("sum", "max") for power in (1.0, 2.0, 2.0000001, 3.0)}
    assert len(names) == 8


@pytest.mark.parametrize(("kind", "power"), [("sum", 0.5), ("max", float("nan")), ("median", 2.0)])
def test_a_map_that_does_not_exist_is_refused(kind, power):
    with pytest.raises(ValueError, match=kind):
        power_map(kind, power)
