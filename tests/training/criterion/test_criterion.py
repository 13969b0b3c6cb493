"""compute_at_loss: what is minimised, and what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attention_transfer import (
    ConfigError,
    DataError,
    TeacherError,
    attention_loss,
    compute_at_loss,
    create_model,
    distillation_loss,
)
from attention_transfer.features.taps import Taps
from attention_transfer.logs import log_once
from attention_transfer.networks.registry import ModelCard

IMAGES = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 2])


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    return create_model("ResNet18", 4)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return create_model("MultiBranchNet", 4)


def test_the_total_is_the_weighted_sum_of_its_components(student, teacher):
    losses = compute_at_loss(student, teacher, IMAGES, LABELS, {"alpha": 0.3, "beta": 50.0, "temperature": 2.0})
    total = losses.classification + 0.3 * losses.kd + 50.0 * losses.attention
    torch.testing.assert_close(losses.total, total)
    torch.testing.assert_close(losses.attention, sum(losses.per_stage))
    assert len(losses.per_stage) == 4
    assert losses.logits.shape == (4, 4)


def test_each_component_is_what_its_formula_says(student, teacher):
    losses = compute_at_loss(student, teacher, IMAGES, LABELS, {"alpha": 1.0})
    teacher.eval()
    with torch.no_grad(), Taps(teacher, ["layer1", "layer2", "layer3", "layer4"]) as taps:
        teacher_logits = teacher(IMAGES)
    again = copy.deepcopy(student)
    again_losses = compute_at_loss(again, teacher, IMAGES, LABELS, {"alpha": 1.0})
    torch.testing.assert_close(again_losses.classification, F.cross_entropy(again_losses.logits, LABELS))
    torch.testing.assert_close(losses.classification, F.cross_entropy(losses.logits, LABELS))
    torch.testing.assert_close(losses.kd, distillation_loss(losses.logits, teacher_logits, 4.0))
    from attention_transfer.networks.registry import taps_of

    with Taps(student, taps_of(student)) as student_taps:
        student(IMAGES)
    torch.testing.assert_close(losses.attention, attention_loss(student_taps.features, taps.features))


def test_components_are_told_unweighted_also_where_their_weight_is_zero(student, teacher):
    told = compute_at_loss(student, teacher, IMAGES, LABELS, {"alpha": 0.0, "beta": 0.0})
    weighed = compute_at_loss(student, teacher, IMAGES, LABELS, {"alpha": 1.0, "beta": 1.0})
    assert torch.equal(told.total, told.classification)
    torch.testing.assert_close(told.kd, weighed.kd)
    torch.testing.assert_close(told.attention, weighed.attention)


def test_without_a_teacher_kd_and_attention_are_zero(student):
    losses = compute_at_loss(student, None, IMAGES, LABELS, {"alpha": 0.5})
    assert (float(losses.kd), float(losses.attention), losses.per_stage) == (0.0, 0.0, ())
    assert torch.equal(losses.total, losses.classification)


def test_a_student_that_is_its_own_teacher_has_nothing_to_learn(teacher):
    losses = compute_at_loss(copy.deepcopy(teacher).eval(), teacher, IMAGES, LABELS, {"alpha": 1.0})
    assert float(losses.attention) == pytest.approx(0, abs=1e-12)
    assert float(losses.kd) == pytest.approx(0, abs=1e-5)


def test_a_teacher_in_train_mode_is_left_as_it_was_and_answers_in_eval_mode(student, teacher):
    reference = compute_at_loss(copy.deepcopy(student), teacher.eval(), IMAGES, LABELS, {"alpha": 1.0})
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    losses = compute_at_loss(student, teacher, IMAGES, LABELS, {"alpha": 1.0})
    assert teacher.training
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert torch.equal(losses.total, reference.total)


def test_gradients_reach_the_student_alone(student, teacher):
    teacher.requires_grad_(True)
    compute_at_loss(student, teacher, IMAGES, LABELS, {"alpha": 0.5}).total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_stages_of_other_sizes_are_pooled(student):
    narrow = create_model("CifarResNet-20", 4)
    losses = compute_at_loss(student, narrow, IMAGES, LABELS, {})
    assert len(losses.per_stage) == 3
    assert all(float(stage) > 0 for stage in losses.per_stage)


def test_a_pair_of_one_number_is_dropped_and_said_once(student, teacher, caplog):
    log_once.cache_clear()
    small = IMAGES[..., :32, :32]
    with caplog.at_level("INFO", "attention_transfer"):
        losses = compute_at_loss(student.eval(), teacher, small, LABELS, {})
        compute_at_loss(student, teacher, small, LABELS, {})
    assert len(losses.per_stage) == 3
    assert sum("1x1" in record.message for record in caplog.records) == 1


def test_no_pair_with_a_signal_is_an_error_unless_beta_is_zero(teacher):
    last = {"layers": ["layer4"]}
    small = IMAGES[..., :32, :32]
    with pytest.raises(ConfigError, match="beta > 0"):
        compute_at_loss(copy.deepcopy(teacher).eval(), teacher, small, LABELS, last)
    assert compute_at_loss(copy.deepcopy(teacher).eval(), teacher, small, LABELS, {**last, "beta": 0.0}).per_stage == ()


def test_layers_override_the_stages(teacher):
    student = create_model("ResNet18", 4)
    losses = compute_at_loss(student, teacher, IMAGES, LABELS, {"layers": ["layer2", "layer1.0:layer1"]})
    assert len(losses.per_stage) == 2


def test_other_heads_matter_to_distillation_alone(student):
    wide = create_model("ResNet18", 7)
    assert float(compute_at_loss(student, wide, IMAGES, LABELS, {}).attention) > 0
    with pytest.raises(TeacherError, match=r"7 classes apart, but the student 4.*alpha=0"):
        compute_at_loss(student, wide, IMAGES, LABELS, {"alpha": 0.1})


def test_classes_that_the_teacher_does_not_know_matter_to_distillation_alone(student, teacher):
    student.card = ModelCard("MultiBranchNet", 4, ("ant", "bee", "cat", "dog"))
    other = copy.deepcopy(teacher)
    other.card = ModelCard("ResNet18", 4, ("ants", "bee", "cat", "dog"))
    assert float(compute_at_loss(student, other, IMAGES, LABELS, {}).kd) == 0
    with pytest.raises(TeacherError, match=r"ant, bee, cat, dog, and the teacher ants, .* has no 'ant' \(but 'ants'\)"):
        compute_at_loss(student, other, IMAGES, LABELS, {"alpha": 0.1})


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_out_of_range_is_named(student, label):
    with pytest.raises(DataError, match=f"label is {label}"):
        compute_at_loss(student, None, IMAGES, torch.tensor([0, 1, 2, label]), {})


def test_a_student_that_puts_out_no_logits_is_an_error():
    with pytest.raises(ConfigError, match=r"logits \[B, K\]"):
        compute_at_loss(nn.Conv2d(3, 4, 3), None, IMAGES, LABELS, {})


def test_bfloat16_features_change_the_loss_by_their_rounding_alone(student, teacher):
    exact = compute_at_loss(student.eval(), teacher, IMAGES, LABELS, {})
    with torch.autocast("cpu", torch.bfloat16):
        rounded = compute_at_loss(student, teacher, IMAGES, LABELS, {})
    assert rounded.attention.dtype == torch.float32
    np.testing.assert_allclose(float(rounded.attention), float(exact.attention), rtol=0.05)
