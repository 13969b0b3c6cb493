"""Maps of the input's gradient, the student's second derivatives, and images without a label."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.transformers import tiny_vit, torchvisions
from torch import nn
from torch.nn import functional as F

from attention_transfer import ConfigError, compute_at_loss, create_model
from attention_transfer.features.gradients import GRADIENT, gradient_map, input_gradient
from attention_transfer.features.maps import normalize
from attention_transfer.features.signals import Needs, known_images
from attention_transfer.teacher.runner import FrozenRunner

NEEDS = Needs(maps=(GRADIENT,))


def reference(gradient):
    """The map in NumPy, of a gradient [B, C, H, W] whose sides are multiples of 4."""
    count, _, height, width = gradient.shape
    squares = (gradient.astype(np.float64) ** 2).sum(axis=1)
    return squares.reshape(count, height // 4, 4, width // 4, 4).mean(axis=(2, 4))


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e15])
def test_the_map_is_the_sum_of_squares_over_channels_pooled_to_a_quarter_up_to_a_factor(size):
    gradient = np.random.default_rng(0).normal(size=(3, 3, 24, 16)) * size
    expected = reference(gradient)
    expected /= np.sqrt((expected**2).sum(axis=(1, 2), keepdims=True))
    computed = normalize(gradient_map(torch.from_numpy(gradient).float()))
    assert computed.shape == (3, 6, 4)
    np.testing.assert_allclose(computed.numpy(), expected, rtol=1e-5)


def test_the_sides_of_a_map_are_a_quarter_rounded_down_and_at_least_one():
    assert gradient_map(torch.rand(1, 3, 35, 3)).shape == (1, 8, 1)


def test_an_image_whose_gradient_is_less_than_1e_12_has_no_map():
    gradient = torch.ones(3, 1, 8, 8) * torch.tensor([0.9e-12, 1.1e-12, 0.0])[:, None, None, None] / 8
    maps = gradient_map(gradient)
    assert [bool(each.any()) for each in maps] == [False, True, False]
    assert known_images(maps).amin(dim=(1, 2)).tolist() == known_images(maps).amax(dim=(1, 2)).tolist() == [0, 1, 0]


class Smooth(nn.Module):
    """A small network of doubles whose second derivatives finite differences can find."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, stride=2), nn.Tanh())
        self.head = nn.Linear(4, 3)
        self.double()

    def forward(self, x):
        return self.head(self.body(x).mean(dim=(2, 3)))


def loss_by_hand(student, teacher, images, labels):
    """AT of gradient maps in NumPy: the gradients are central differences of the cross-entropy, pixel by pixel."""

    def maps(network):
        jacobian = np.zeros(images.shape)
        flat, step = images.flatten(1), 1e-5
        with torch.no_grad():
            for pixel in range(flat.shape[1]):
                moved = torch.zeros_like(flat)
                moved[:, pixel] = step
                losses = [
                    F.cross_entropy(network((flat + sign * moved).view_as(images)), labels, reduction="none")
                    for sign in (1, -1)
                ]
                jacobian.reshape(len(images), -1)[:, pixel] = ((losses[0] - losses[1]) / (2 * step)).numpy()
        found = reference(jacobian)
        return found / np.sqrt((found**2).sum(axis=(1, 2), keepdims=True))

    return ((maps(student) - maps(teacher)) ** 2).mean()


def test_loss_and_students_gradient_are_those_of_finite_differences_in_double_precision():
    student, teacher = Smooth(0), Smooth(1)
    images, labels = torch.randn(2, 3, 8, 12, dtype=torch.float64), torch.tensor([0, 2])
    settings = {"attention": "gradient", "beta": 1.0}
    losses = compute_at_loss(student, teacher, images, labels, settings)
    assert len(losses.per_stage) == 1
    assert float(losses.attention.detach()) == pytest.approx(loss_by_hand(student, teacher, images, labels), rel=1e-6)
    weight = student.body[0].weight
    (gradient,) = torch.autograd.grad(losses.attention, weight)
    torch.manual_seed(2)
    direction, step = torch.randn_like(weight), 1e-4
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step * direction
            values.append(loss_by_hand(student, teacher, images, labels))
            weight -= sign * step * direction
    expected = (values[0] - values[1]) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4)


def test_an_image_without_a_label_adds_nothing_on_either_side():
    student, teacher = Smooth(0), Smooth(1)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    settings = {"attention": "gradient", "beta": 1.0}
    some = compute_at_loss(student, teacher, images[:2], torch.tensor([0, 2]), settings).attention
    runner = FrozenRunner(teacher, (), images, needs=NEEDS)
    maps = runner.run(images, torch.tensor([0, -100, 2, -100]))[GRADIENT.signal]
    assert maps.depends_on_label
    assert maps.coverage[0].flatten(1).amax(dim=1).tolist() == [1, 0, 1, 0]
    with pytest.raises(ConfigError, match="depends on the labels, and the batch has none"):
        runner.run(images)
    assert some > 0


def test_a_confident_students_map_does_not_vanish():
    torch.manual_seed(0)
    student, teacher = create_model("CifarResNet-8", 3), create_model("CifarResNet-8", 3)
    with torch.no_grad():
        student.linear.bias.copy_(torch.tensor([14.0, 0.0, 0.0]))  # J is some 1e-7 of what it would be
    images, labels = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
    student.eval()
    assert input_gradient(student, images, labels).square().sum() < 1e-9
    losses = compute_at_loss(student, teacher, images, labels, {"attention": "gradient", "beta": 1.0})
    losses.total.backward()
    assert losses.attention > 1e-4
    assert student.conv1.weight.grad.abs().sum() > 1e-6


def test_an_images_map_is_the_same_to_the_bit_in_whatever_batch_it_comes():
    torch.manual_seed(0)
    teacher, images = create_model("CifarResNet-8", 10), torch.rand(40, 3, 32, 32)
    labels = torch.arange(40) % 10
    runner = FrozenRunner(teacher, (), images, needs=NEEDS)
    (whole,) = runner.run(images, labels).maps(GRADIENT)
    (alone,) = runner.run(images[37:38], labels[37:38]).maps(GRADIENT)
    (few,) = runner.run(images[30:], labels[30:]).maps(GRADIENT)
    assert torch.equal(whole[37:38], alone)
    assert torch.equal(whole[30:], few)
    assert not teacher.conv1.weight.grad


def test_labels_are_the_teachers_where_it_numbers_the_classes_differently():
    torch.manual_seed(0)
    student, teacher = create_model("CifarResNet-8", 3), create_model("CifarResNet-8", 3)
    images, labels = torch.rand(6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    settings = {"attention": "gradient", "beta": 1.0, "class_names": ("ant", "bee", "cat")}
    usual = compute_at_loss(student, teacher, images, labels, settings).attention.detach()
    other = create_model("CifarResNet-8", 3)
    other.load_state_dict(teacher.state_dict())
    order = [2, 0, 1]  # class i of `other` is class order[i] of the teacher
    with torch.no_grad():
        other.linear.weight.copy_(teacher.linear.weight[order])
        other.linear.bias.copy_(teacher.linear.bias[order])
    other.card, other.class_names = None, ("cat", "ant", "bee")
    again = compute_at_loss(student, other, images, labels, settings).attention.detach()
    assert float(again) == pytest.approx(float(usual), rel=1e-4)


@pytest.mark.parametrize("make", [tiny_vit, lambda: torchvisions(32, patch_size=8)])
def test_a_transformer_as_student_is_differentiated_twice_without_fused_kernels(make):
    student, teacher = make(), create_model("CifarResNet-8", 10)
    settings = {"attention": "gradient", "beta": 1e3}
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([1, 2])
    losses = compute_at_loss(student, teacher, images, labels, settings)
    losses.attention.backward()
    first = next(p for name, p in student.named_parameters() if "proj.weight" in name)
    assert torch.isfinite(first.grad).all()
    assert first.grad.abs().sum() > 0


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


class OnlyOnce(Smooth):
    def forward(self, x):
        return self.head(Once.apply(self.body(x)).mean(dim=(2, 3)))


def test_a_student_without_second_derivatives_is_refused_before_the_first_step():
    images, labels = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 2])
    settings = {"attention": "gradient", "beta": 1.0}
    with pytest.raises(ConfigError, match=r"gradient of OnlyOnce by its input.* has no second derivative"):
        compute_at_loss(OnlyOnce(0), Smooth(1), images, labels, settings)
    # as a teacher it is differentiated once
    assert compute_at_loss(Smooth(0), OnlyOnce(1), images, labels, settings).attention > 0


def test_a_compiled_student_is_refused_with_a_sentence():
    images, labels = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 2])
    compiled = torch.compile(Smooth(0), backend="eager")
    with pytest.raises(ConfigError, match="differentiates the student twice, which compiled networks do not support"):
        compute_at_loss(compiled, Smooth(1), images, labels, {"attention": "gradient", "beta": 1.0})


class Interpolating(nn.Module):
    """Half-precision weights, and a buffer, in a network whose own forward tells the format that it computes in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 8, 3))
        self.head = nn.Linear(8, 4)
        self.formats = set()

    def forward(self, x):
        features = self.body(x)
        self.formats.add(features.dtype)
        return self.head(features.mean(dim=(2, 3)))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_gradient_of_a_teacher_in_half_precision_is_computed_in_float32(half):
    teacher = Interpolating().to(half).eval()
    images, labels = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(3)
    wide = copy.deepcopy(teacher).float()
    runner = FrozenRunner(teacher, (), images, needs=NEEDS)
    teacher.formats.clear()
    (maps,) = runner.run(images, labels).maps(GRADIENT)
    (expected,) = FrozenRunner(wide, (), images, needs=NEEDS).run(images, labels).maps(GRADIENT)
    assert teacher.formats == {torch.float32}
    assert torch.equal(maps, expected)
    assert {parameter.dtype for parameter in teacher.parameters()} == {half}
