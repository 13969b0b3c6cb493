"""The losses against their formulas in NumPy, and the pairing of stages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attention_transfer.attention import (
    attention_loss,
    attention_map,
    distillation_loss,
    energy,
    map_distance,
    normalize,
    pair_stages,
)


def numpy_map(features: torch.Tensor) -> np.ndarray:
    flat = (features.double().numpy() ** 2).mean(axis=1).reshape(len(features), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def random_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_map_is_the_normalised_mean_of_squares():
    x = random_features(3, 16, 7, 5)
    ours = attention_map(x)
    assert ours.shape == (3, 7, 5)
    np.testing.assert_allclose(ours.flatten(1).numpy(), numpy_map(x), rtol=1e-5)
    np.testing.assert_allclose(ours.flatten(1).norm(dim=1).numpy(), 1.0, rtol=1e-6)


def test_the_loss_is_the_textbook_expression_on_stages_of_equal_size():
    def at(x):
        return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))

    student = [random_features(4, 8, 8, 8), random_features(4, 16, 4, 4, seed=1)]
    teacher = [random_features(4, 32, 8, 8, seed=2), random_features(4, 64, 4, 4, seed=3)]
    textbook = sum((at(s) - at(t)).pow(2).mean() for s, t in zip(student, teacher, strict=True))
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


def test_features_that_are_all_zero_give_a_zero_map_and_finite_gradients():
    x = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_loss([x], [random_features(2, 3, 4, 4)]).backward()
    assert torch.equal(attention_map(x), torch.zeros(2, 4, 4))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_squared_in_float32(dtype):
    x = (300 * random_features(2, 3, 4, 4)).to(dtype)
    assert attention_map(x).dtype == torch.float32
    assert energy(x).max() > 65504 / 3
    torch.testing.assert_close(attention_map(x), attention_map(x.float()))


def test_gradients_of_the_losses_are_right_in_float64():
    student = [
        random_features(2, 3, 4, 4).double().requires_grad_(),
        random_features(2, 3, 5, 3).double().requires_grad_(),
    ]
    teacher = [random_features(2, 3, 4, 4, seed=1).double(), random_features(2, 3, 4, 4, seed=2).double()]
    assert torch.autograd.gradcheck(lambda *s: attention_loss(s, teacher), student)
    logits = random_features(3, 5).double().requires_grad_()
    target = random_features(3, 5, seed=1).double()
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, target, 3.0), [logits])


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
