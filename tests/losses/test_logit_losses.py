"""DKD, DIST and standardised logits against their papers' equations in NumPy, with their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from attention_transfer.losses.logits.dist import pearson, relation_distillation_loss
from attention_transfer.losses.logits.dkd import decoupled_distillation_loss
from attention_transfer.losses.logits.kd import distillation_loss
from attention_transfer.losses.logits.standardization import standardized

LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def soft(logits: torch.Tensor, temperature: float) -> np.ndarray:
    e = np.exp(logits.double().numpy() / temperature)
    return e / e.sum(axis=1, keepdims=True)


def numpy_dkd(student, teacher, labels, temperature, target, nontarget):
    total = 0.0
    for p, q, label in zip(soft(teacher, temperature), soft(student, temperature), labels.tolist(), strict=True):
        others = np.arange(len(p)) != label
        b, c = np.array([p[label], p[others].sum()]), np.array([q[label], q[others].sum()])
        tckd = (b * np.log(b / c)).sum()
        p_hat, q_hat = p[others] / p[others].sum(), q[others] / q[others].sum()
        total += target * tckd + nontarget * (p_hat * np.log(p_hat / q_hat)).sum()
    return temperature**2 * total / len(labels)


def numpy_dist(student, teacher, temperature):
    p, q = soft(teacher, temperature), soft(student, temperature)

    def mean_r(one, other):
        return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one, other, strict=True)])

    return temperature**2 * ((1 - mean_r(p, q)) + (1 - mean_r(p.T, q.T)))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [(1.0, 8.0), (2.0, 0.0), (0.0, 1.0)])
def test_dkd_is_equation_7_of_its_paper(weights, temperature):
    student, teacher = random_logits(6, 5), random_logits(6, 5, seed=1)
    ours = decoupled_distillation_loss(student, teacher, LABELS, temperature, *weights)
    assert float(ours) == pytest.approx(numpy_dkd(student, teacher, LABELS, temperature, *weights), rel=1e-5)
    assert float(decoupled_distillation_loss(teacher, teacher, LABELS, temperature, *weights)) == pytest.approx(
        0, abs=1e-5
    )


def test_dkd_with_the_teachers_doubt_as_weight_is_kd():
    student, teacher = random_logits(1, 5), random_logits(1, 5, seed=1)
    doubt = 1 - soft(teacher, 4.0)[0, 2]
    ours = decoupled_distillation_loss(student, teacher, torch.tensor([2]), 4.0, 1.0, doubt)
    torch.testing.assert_close(ours, distillation_loss(student, teacher, 4.0))


def test_dkd_passes_over_images_without_a_label():
    student, teacher = random_logits(6, 5).requires_grad_(), random_logits(6, 5, seed=1)
    labels = torch.where(torch.arange(6) % 2 == 0, LABELS, -100)
    ours = decoupled_distillation_loss(student, teacher, labels)
    torch.testing.assert_close(ours, decoupled_distillation_loss(student[::2], teacher[::2], LABELS[::2]))
    ours.backward()
    assert torch.equal(student.grad[1::2], torch.zeros(3, 5))
    assert decoupled_distillation_loss(student, teacher, torch.full((6,), -100)) == 0


def test_dkd_of_two_classes_has_nothing_but_its_first_part():
    student, teacher, labels = random_logits(4, 2), random_logits(4, 2, seed=1), torch.tensor([0, 1, 1, 0])
    first = decoupled_distillation_loss(student, teacher, labels, 4.0, 1.0, 0.0)
    torch.testing.assert_close(decoupled_distillation_loss(student, teacher, labels, 4.0, 1.0, 8.0), first)
    torch.testing.assert_close(first, distillation_loss(student, teacher, 4.0))


def test_dkd_of_very_sure_networks_is_finite():
    student = (1000 * F.one_hot(LABELS, 5)).float().requires_grad_()
    teacher = (1000 * F.one_hot(LABELS.roll(1), 5)).float()
    loss = decoupled_distillation_loss(student, teacher, LABELS, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_equation_10_of_its_paper(temperature):
    student, teacher = random_logits(6, 5), random_logits(6, 5, seed=1)
    ours = relation_distillation_loss(student, teacher, temperature)
    assert float(ours) == pytest.approx(numpy_dist(student, teacher, temperature), rel=1e-5)
    assert float(relation_distillation_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-5)


def test_dist_of_one_image_compares_its_classes_alone():
    student, teacher = random_logits(1, 5), random_logits(1, 5, seed=1)
    r = np.corrcoef(soft(student, 4.0)[0], soft(teacher, 4.0)[0])[0, 1]
    assert float(relation_distillation_loss(student, teacher, 4.0)) == pytest.approx(16 * (1 - r), rel=1e-5)


def test_correlations_of_constant_rows_are_0_and_have_no_gradient():
    rows = torch.stack([torch.full((7,), 1 / 7), torch.arange(7.0)]).requires_grad_()
    other = random_logits(2, 7)
    r = pearson(rows, other)
    r.sum().backward()
    assert r[0] == 0
    assert float(r[1]) == pytest.approx(np.corrcoef(np.arange(7), other[1].numpy())[0, 1], rel=1e-5)
    assert torch.equal(rows.grad[0], torch.zeros(7))
    assert rows.grad[1].abs().sum() > 0


def test_a_student_whose_head_is_zero_gets_no_boundless_gradient():
    for loss in (relation_distillation_loss, lambda s, t: distillation_loss(standardized(s), standardized(t))):
        student = torch.zeros(4, 5, requires_grad=True)
        loss(student, random_logits(4, 5)).backward()
        assert torch.equal(student.grad, torch.zeros(4, 5))


def test_classes_of_small_probability_count_as_much_as_others_for_dist():
    student, teacher = random_logits(8, 5), random_logits(8, 5, seed=1)
    student[:, 0] -= 12  # a class with probabilities about 1e-6
    assert float(relation_distillation_loss(student, teacher, 1.0)) == pytest.approx(
        numpy_dist(student, teacher, 1.0), rel=1e-3
    )


def test_standardised_logits_are_algorithm_1_of_their_paper():
    logits = random_logits(6, 5) + 7
    z = logits.double().numpy()
    expected = (z - z.mean(axis=1, keepdims=True)) / (1e-7 + z.std(axis=1, ddof=1, keepdims=True))
    np.testing.assert_allclose(standardized(logits), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(standardized(20 * logits - 3), standardized(logits))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_logits_are_computed_in_float32(dtype):
    student, teacher = random_logits(6, 5).to(dtype), random_logits(6, 5, seed=1).to(dtype)
    for loss in (relation_distillation_loss, lambda s, t: decoupled_distillation_loss(s, t, LABELS)):
        assert loss(student, teacher).dtype == torch.float32
        torch.testing.assert_close(loss(student, teacher), loss(student.float(), teacher.float()))


def test_gradients_are_those_of_finite_differences():
    student, teacher = random_logits(6, 5).double().requires_grad_(), random_logits(6, 5, seed=1).double()
    for loss in (
        lambda s: decoupled_distillation_loss(s, teacher, LABELS, 3.0),
        lambda s: relation_distillation_loss(s, teacher, 3.0),
        lambda s: distillation_loss(standardized(s), standardized(teacher), 3.0),
        lambda s: decoupled_distillation_loss(standardized(s), standardized(teacher), LABELS, 3.0),
    ):
        assert torch.autograd.gradcheck(loss, [student])
