"""The losses against their formulas in NumPy, and the pairing of stages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attention_transfer.features.maps import attention_map, energy, normalize
from attention_transfer.features.pairing import pair_stages
from attention_transfer.losses.attention import attention_loss
from attention_transfer.losses.logits.kd import distillation_loss
from attention_transfer.losses.map_distance import map_distance


def numpy_map(features: torch.Tensor) -> np.ndarray:
    flat = (features.double().numpy() ** 2).mean(axis=1).reshape(len(features), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def textbook_map(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x.pow(2).mean(1).reshape(x.size(0), -1))


def random_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_map_is_the_normalised_mean_of_squares():
    x = random_features(3, 16, 7, 5)
    ours = attention_map(x)
    assert ours.shape == (3, 7, 5)
    np.testing.assert_allclose(ours.flatten(1).numpy(), numpy_map(x), rtol=1e-5)
    np.testing.assert_allclose(ours.flatten(1).norm(dim=1).numpy(), 1.0, rtol=1e-6)


def test_the_loss_is_the_textbook_expression_on_stages_of_equal_size():
    student = [random_features(4, 8, 8, 8), random_features(4, 16, 4, 4, seed=1)]
    teacher = [random_features(4, 32, 8, 8, seed=2), random_features(4, 64, 4, 4, seed=3)]
    textbook = sum((textbook_map(s) - textbook_map(t)).pow(2).mean() for s, t in zip(student, teacher, strict=True))
    torch.testing.assert_close(attention_loss(student, teacher), textbook)


def test_the_loss_agrees_with_numpy_where_the_teacher_is_larger():
    student, teacher = random_features(2, 4, 3, 5), random_features(2, 8, 6, 10, seed=1)
    pooled = (teacher.double().numpy() ** 2).mean(axis=1).reshape(2, 3, 2, 5, 2).mean(axis=(2, 4)).reshape(2, -1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    expected = ((numpy_map(student) - pooled) ** 2).mean()
    assert float(attention_loss([student], [teacher])) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "size"),
    [
        ((8, 8), (8, 8), (8, 8)),
        ((16, 16), (8, 8), (8, 8)),
        ((8, 8), (16, 16), (8, 8)),
        ((7, 7), (8, 8), (7, 7)),
        ((8, 8), (7, 7), (7, 7)),
        ((8, 4), (4, 8), (4, 4)),
        ((6, 10), (3, 5), (3, 5)),
        ((5, 9), (7, 3), (5, 3)),
        ((1, 4), (4, 4), (1, 4)),
    ],
)
def test_maps_of_any_sizes_are_compared_at_the_smaller_of_each_side(student, teacher, size):
    s, t = random_features(2, 3, *student), random_features(2, 5, *teacher, seed=1)
    expected = [normalize(F.adaptive_avg_pool2d(energy(x)[:, None], size)[:, 0]) for x in (s, t)]
    torch.testing.assert_close(map_distance(energy(s), energy(t)), (expected[0] - expected[1]).pow(2).mean())


def test_a_normalised_map_says_the_same_as_its_energy():
    s, t = random_features(2, 3, 8, 8), random_features(2, 5, 6, 6, seed=1)
    torch.testing.assert_close(map_distance(energy(s), attention_map(t)), map_distance(energy(s), energy(t)))


def test_the_scale_of_the_features_does_not_matter():
    x = random_features(2, 3, 4, 4)
    torch.testing.assert_close(attention_map(x), attention_map(1000 * x))


def test_features_that_are_all_zero_give_a_zero_map_and_no_gradient():
    for dtype in (torch.float16, torch.float32):
        x = torch.zeros(2, 3, 4, 4, dtype=dtype, requires_grad=True)
        attention_loss([x], [random_features(2, 3, 4, 4)]).backward()
        assert torch.equal(attention_map(x), torch.zeros(2, 4, 4))
        assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 8, 6, 5), (5, 64, 64, 64)], ids=["small", "several pieces"])
def test_loss_and_gradient_are_the_textbook_expressions_in_every_format(shape, memory_format, dtype):
    x = random_features(*shape).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    target = attention_map(random_features(*shape, seed=1)).flatten(1)
    ours = map_distance(energy(x), target.view(len(x), *shape[2:]))
    ours.backward()
    exact = x.detach().double().requires_grad_()
    textbook = (textbook_map(exact) - target).pow(2).mean()
    textbook.backward()
    torch.testing.assert_close(ours.double(), textbook, rtol=1e-5, atol=0)
    assert x.grad.dtype == dtype
    assert x.grad.is_contiguous(memory_format=memory_format)
    rounding = max(torch.finfo(dtype).eps, 1e-6)
    smallest = 6e-8 if dtype == torch.float16 else 0  # below it float16 has no numbers
    largest = float(exact.grad.abs().max())
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=rounding, atol=rounding * largest + smallest)


def test_features_that_lie_apart_in_memory_are_read_right():
    x = random_features(4, 8, 12, 10)[::2, 1::2, ::3].requires_grad_()
    target = random_features(2, 3, 4, 10, seed=1)
    attention_loss([x], [target]).backward()
    dense = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    attention_loss([dense], [target]).backward()
    torch.testing.assert_close(x.grad, dense.grad)


def test_features_under_autocast_are_squared_in_float32_and_get_a_gradient_in_their_own_type():
    convolution = torch.nn.Conv2d(3, 8, 3)
    images, target = random_features(2, 3, 10, 10), random_features(2, 4, 8, 8, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        features = convolution(images)
        features.retain_grad()
        inside = attention_loss([features], [target])
    outside = attention_loss([features.detach()], [target])
    assert features.dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)
    inside.backward()
    assert features.grad.dtype == torch.bfloat16
    assert convolution.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_squared_in_float32(dtype):
    x = (300 * random_features(2, 3, 4, 4)).to(dtype)
    assert attention_map(x).dtype == torch.float32
    assert energy(x).max() > 65504 / 3
    torch.testing.assert_close(attention_map(x), attention_map(x.float()))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_large_float16_features_do_not_overflow(memory_format):
    x = torch.full((2, 512, 4, 4), 300.0, dtype=torch.float16).contiguous(memory_format=memory_format).requires_grad_()
    torch.testing.assert_close(energy(x), torch.full((2, 4, 4), 90_000.0))
    attention_loss([x], [random_features(2, 512, 4, 4)]).backward()
    assert x.grad.isfinite().all()


def test_gradients_of_the_losses_are_right_in_float64():
    student = [
        random_features(2, 3, 4, 4).double().requires_grad_(),
        random_features(2, 3, 5, 3).double().requires_grad_(),
    ]
    teacher = [random_features(2, 3, 4, 4, seed=1).double(), random_features(2, 3, 4, 4, seed=2).double()]
    assert torch.autograd.gradcheck(lambda *s: attention_loss(s, teacher), student)
    assert torch.autograd.gradcheck(energy, student[:1])
    logits = random_features(3, 5).double().requires_grad_()
    target = random_features(3, 5, seed=1).double()
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, target, 3.0), [logits])


def test_gradients_are_right_where_a_map_is_zero():
    student = random_features(3, 3, 4, 4).double()
    student[1] = 0
    teacher = random_features(3, 3, 4, 4, seed=1).double()
    teacher[2] = 0
    assert torch.autograd.gradcheck(lambda x: attention_loss([x], [teacher]), [student.requires_grad_()])


def test_gradients_of_the_distance_are_right_for_both_sides_and_under_a_mask():
    student = energy(random_features(3, 3, 4, 6).double()).requires_grad_()
    teacher = energy(random_features(3, 3, 8, 5, seed=1).double()).requires_grad_()
    assert torch.autograd.gradcheck(map_distance, [student, teacher])
    mask = torch.ones(3, 8, 5)
    mask[0, :3], mask[1] = 0, 0
    assert torch.autograd.gradcheck(lambda s, t: map_distance(s, t, mask=mask), [student, teacher])


def test_the_gradient_of_a_map_below_the_least_norm_is_that_of_the_textbook():
    target = attention_map(random_features(1, 3, 2, 2).double())
    tiny = torch.full((1, 2, 2), 1e-14, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(map_distance(tiny, target), [tiny])
    (expected,) = torch.autograd.grad((normalize(tiny) - normalize(target)).pow(2).mean(), [tiny])
    torch.testing.assert_close(gradient, expected)


def test_under_a_mask_only_the_cells_it_covers_wholly_are_compared():
    student, teacher = energy(random_features(2, 3, 4, 4)), energy(random_features(2, 5, 8, 8, seed=1))
    mask = torch.ones(2, 8, 8)
    mask[0, 0, 0] = 0  # one of the four cells that make the first one of 4x4
    mask[1, :, 5:] = 0  # half of the third column of 4x4, and the fourth
    covered = torch.ones(2, 4, 4)
    covered[0, 0, 0] = 0
    covered[1, :, 2:] = 0
    pooled = F.avg_pool2d(teacher[:, None], 2)[:, 0]
    expected = (normalize(student * covered) - normalize(pooled * covered)).pow(2).mean()
    torch.testing.assert_close(map_distance(student, teacher, mask=mask), expected)
    torch.testing.assert_close(map_distance(student, teacher, mask=mask.bool()), expected)
    elsewhere = torch.where(covered.bool(), student, 1000 * student)
    torch.testing.assert_close(map_distance(elsewhere, teacher, mask=mask), expected)


@pytest.mark.parametrize(("larger", "smaller"), [(8, 4), (7, 3), (56, 9)])
def test_a_mask_of_ones_changes_nothing(larger, smaller):
    student, teacher = energy(random_features(2, 3, smaller, smaller)), energy(random_features(2, 5, larger, larger))
    assert torch.equal(map_distance(student, teacher, mask=torch.ones_like(teacher)), map_distance(student, teacher))


def test_an_image_without_coverage_adds_no_loss_and_gets_no_gradient():
    x, teacher = random_features(3, 4, 6, 6).requires_grad_(), energy(random_features(3, 4, 6, 6, seed=1))
    mask = torch.ones(3, 6, 6)
    mask[1] = 0
    loss = map_distance(energy(x), teacher, mask=mask)
    loss.backward()
    assert torch.equal(x.grad[1], torch.zeros(4, 6, 6))
    assert x.grad[0].abs().sum() > 0
    covered = [0, 2]
    torch.testing.assert_close(loss, map_distance(energy(x[covered]), teacher[covered]) * 2 / 3)
    nowhere = map_distance(energy(x), teacher, mask=torch.zeros(3, 6, 6))
    assert nowhere == 0
    assert torch.equal(torch.autograd.grad(nowhere, [x])[0], torch.zeros_like(x))


def test_a_mask_of_another_shape_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 4, 4\).*\(2, 8, 8\)"):
        map_distance(torch.rand(2, 4, 4), torch.rand(2, 8, 8), mask=torch.ones(2, 4, 4))


def test_maps_kept_in_float16_are_normalised_in_float32():
    student, teacher = attention_map(random_features(2, 3, 4, 4)), attention_map(random_features(2, 3, 8, 8, seed=1))
    teacher[1] = 0
    kept = map_distance(student, teacher.half())
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept, map_distance(student, teacher), rtol=1e-3, atol=0)


def test_distillation_is_the_divergence_of_the_softened_classes():
    student, teacher, temperature = random_features(6, 5), random_features(6, 5, seed=1), 4.0

    def soft(x):
        e = np.exp(x.double().numpy() / temperature)
        return e / e.sum(axis=1, keepdims=True)

    p, q = soft(teacher), soft(student)
    expected = temperature**2 * (p * np.log(p / q)).sum(axis=1).mean()
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-4)
    assert float(distillation_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)


def pairs(student, teacher):
    return [(pair.student, pair.teacher) for pair in pair_stages([(s, s) for s in student], [(t, t) for t in teacher])]


def test_stages_of_equal_size_pair_first():
    assert pairs([32, 16, 8], [64, 32, 16, 8]) == [(0, 1), (1, 2), (2, 3)]
    assert pairs([16, 8], [8, 4]) == [(0, 1), (1, 0)]


def test_what_is_left_pairs_from_the_deepest_in_order():
    assert pairs([30, 14, 6], [56, 28, 12, 7]) == [(0, 1), (1, 2), (2, 3)]
    assert pairs([32, 16, 8, 4], [5, 3]) == [(2, 0), (3, 1)]


def test_of_several_equal_stages_the_deepest_pair():
    assert pairs([8, 8, 8], [8]) == [(2, 0)]
    assert pairs([8, 8], [8, 8]) == [(0, 0), (1, 1)]


def test_a_pair_of_one_number_has_no_signal():
    deep, deepest = pair_stages([(4, 4), (1, 1)], [(4, 4), (2, 2)])
    assert deep.has_signal
    assert not deepest.has_signal


def test_no_pair_with_a_signal_is_an_error():
    with pytest.raises(ValueError, match="1x1"):
        attention_loss([random_features(2, 3, 1, 1)], [random_features(2, 3, 4, 4)])


def test_features_without_four_dimensions_are_refused_with_their_shape():
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        attention_map(torch.zeros(2, 3))
