"""Gradients of several batches make the step of the larger batch, and gradients are clipped by their norm."""

from __future__ import annotations

import pytest
import torch
from support.runs import tensors
from support.workers.process_worker import FrozenNorm
from torch import nn

from attention_transfer import create_model, train_epoch
from attention_transfer.config import Config
from attention_transfer.distributed import AcceleratedRuntime
from attention_transfer.training.optim.updates import UpdateRule, Updates

CONFIG = {"alpha": 0.5, "beta": 100.0, "layers": ["network.layer2", "network.layer3"]}


class Plain(nn.Module):
    """A network of float32 without batch normalisation, with stages of the usual names."""

    def __init__(self):
        super().__init__()
        self.network = nn.Module()
        self.network.layer2 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.network.layer3 = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.network.layer3(self.network.layer2(x)).mean(dim=(2, 3)))


def plain(seed=0):
    torch.manual_seed(seed)
    return Plain()


def trained(sizes, student=None, optimizer_of=None, **config):
    """The weights after an epoch over batches of these sizes, and the last gradients."""
    student = student or plain()
    images, labels = tensors(sum(sizes))
    loader = list(zip(images.split(sizes), labels.split(sizes), strict=True))
    optimizer = (optimizer_of or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)))(student.parameters())
    figures = train_epoch(student, plain(1), loader, optimizer, "cpu", {**CONFIG, **config})
    return student.state_dict(), {name: p.grad for name, p in student.named_parameters()}, figures


@pytest.mark.parametrize(
    ("large", "small", "accumulate"),
    [
        ([12, 12], [4] * 6, 3),
        ([12, 5], [4, 4, 4, 4, 1], 3),  # the last group is smaller, and so is its last batch
        ([12, 8], [4] * 5, 3),
        ([11, 9], [6, 4, 1, 3, 5, 1], 3),  # a loader of batches of any size
        ([20], [4] * 5, 100),
    ],
)
def test_accumulation_equals_the_larger_batch(large, small, accumulate):
    weights, gradients, figures = trained(large)
    others, accumulated, means = trained(small, accumulate=accumulate)
    for name, gradient in gradients.items():
        torch.testing.assert_close(accumulated[name], gradient, rtol=1e-5, atol=1e-7)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-5, atol=1e-7)
    if len(large) == 1:  # losses are measured before the step
        assert means == pytest.approx(figures, rel=1e-5)


@pytest.mark.parametrize(
    ("large", "small", "accumulate"),
    [([12, 8], [5, 4, 3, 5, 3], 3), ([11, 9], [6, 4, 1, 3, 5, 1], 3), ([20], [7, 13], 100)],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mean_of_weighted_classes_is_that_of_the_larger_batch(large, small, accumulate, smoothing):
    recipe = {"class_weights": (0.1, 3.0, 1.0, 0.5), "label_smoothing": smoothing}
    weights, gradients, figures = trained(large, **recipe)
    others, accumulated, means = trained(small, accumulate=accumulate, **recipe)
    for ours, theirs in ((accumulated, gradients), (others, weights)):
        for name, x in theirs.items():
            # in a sum of terms that nearly cancel, rounding is of the terms' size
            torch.testing.assert_close(ours[name], x, rtol=1e-5, atol=1e-5 * float(x.abs().max()))
    if len(large) == 1:
        assert means == pytest.approx(figures, rel=1e-5)


def test_so_it_does_for_a_real_network_whose_statistics_are_frozen():
    def student():
        torch.manual_seed(0)
        return FrozenNorm(create_model("CifarResNet-8", 4))

    config = {**CONFIG, "alpha": 0.0, "beta": 0.0}
    images, labels = tensors(20)
    found = []
    for size, accumulate in ((10, 1), (4, 3)):
        network = student()
        loader = list(zip(images.split(size), labels.split(size), strict=True)) if accumulate == 1 else [
            (images[a:b], labels[a:b]) for a, b in ((0, 4), (4, 8), (8, 10), (10, 14), (14, 18), (18, 20))
        ]  # fmt: skip
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        train_epoch(network, None, loader, optimizer, "cpu", {**config, "accumulate": accumulate})
        found.append(network.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-8)


def test_one_batch_a_step_is_to_the_bit_what_it_was_without_the_setting():
    def by_hand():
        student, teacher = plain(), plain(1)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
        images, labels = tensors(20)
        from attention_transfer import compute_at_loss

        for x, y in zip(images.split(6), labels.split(6), strict=True):
            optimizer.zero_grad()
            compute_at_loss(student, teacher, x, y, CONFIG).total.backward()
            optimizer.step()
        return student.state_dict()

    weights, _, _ = trained([6, 6, 6, 2])
    for name, value in by_hand().items():
        assert torch.equal(weights[name], value), name


def norm_of(gradients):
    return float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())


def test_gradients_are_clipped_by_the_norm_of_all_of_them_after_they_are_accumulated():
    _, free, _ = trained([12])
    _, clipped, _ = trained([4, 4, 4], accumulate=3, clip_grad=norm_of(free) / 2)
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 2, rtol=1e-4, atol=1e-6)
    _, loose, _ = trained([12], clip_grad=norm_of(free) * 2)
    for name, gradient in free.items():
        assert torch.equal(loose[name], gradient)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_in_fp16_gradients_are_unscaled_before_they_are_clipped(accumulate):
    runtime = AcceleratedRuntime(Config(device="cpu"))
    runtime.use_precision("fp16")  # scales its gradients, here of a loss in float32
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    updates = Updates(optimizer, runtime, UpdateRule(accumulate, 0.5), nn.Module())
    for _ in range(accumulate):
        with updates.batch(1, is_last=False) as share:
            runtime.backward((weight * 3).sum() * share)
    runtime.close()
    assert updates.waiting == 0
    torch.testing.assert_close(weight.detach(), torch.full((4,), -0.25))


def test_what_follows_a_step_is_called_once_for_each_group():
    calls = []
    weight = nn.Parameter(torch.zeros(1))
    runtime = AcceleratedRuntime(Config(device="cpu"))
    rule = UpdateRule(3, None, lambda: calls.append(weight.item()))
    updates = Updates(torch.optim.SGD([weight], lr=1.0), runtime, rule, nn.Module())
    for _ in range(7):
        with updates.batch(2, is_last=False) as share:
            runtime.backward(weight.sum() * share)
    assert (updates.waiting, len(calls)) == (1, 2)
    updates.finish()
    runtime.close()
    assert updates.waiting == 0
    assert calls == pytest.approx([-1, -2, -3])
