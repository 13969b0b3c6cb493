"""Training on images that are mixed of two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from attention_transfer import ConfigError, create_model, prepare_dataloaders, train_at
from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.relabelled import Relabelled
from attention_transfer.data.views import Augmentation
from attention_transfer.losses.classification import CrossEntropy
from attention_transfer.training.own_loop import train_epoch


def soft_targets(labels, partners, ratios, classes, smoothing=0.0):
    """[B, K] in double precision, the usual way."""
    one, other = (F.one_hot(y, classes).double() for y in (labels, partners))
    ratios = ratios.double().unsqueeze(1)
    return (ratios * one + (1 - ratios) * other) * (1 - smoothing) + smoothing / classes


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_mixed_labels_is_that_of_soft_targets(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(9, 5, requires_grad=True)
    labels, partners, ratios = torch.randint(5, (9,)), torch.randint(5, (9,)), torch.rand(9)
    ours = CrossEntropy(smoothing)(logits, labels, (partners, ratios))
    twin = logits.detach().double().requires_grad_()
    theirs = F.cross_entropy(twin, soft_targets(labels, partners, ratios, 5, smoothing))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, x)[0].double() for loss, x in ((ours, logits), (theirs, twin))),
        rtol=1e-5,
        atol=1e-7,
    )


def test_weights_of_classes_weigh_both_labels_by_their_shares():
    weights, logits = [1.0, 5.0, 0.5], torch.tensor([[1.0, -1.0, 0.3], [0.2, 0.1, -2.0]])
    labels, partners, ratios = torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([0.75, 0.4])
    minus_log = -logits.double().log_softmax(1)
    terms = [(0.75, 0, 0), (0.25, 0, 1), (0.4, 1, 2), (0.6, 1, 0)]
    expected = sum(share * weights[y] * minus_log[row, y] for share, row, y in terms) / sum(
        share * weights[y] for share, _, y in terms
    )
    cross_entropy = CrossEntropy(class_weights=weights)
    assert float(cross_entropy(logits, labels, (partners, ratios))) == pytest.approx(float(expected), rel=1e-6)


def test_images_that_are_mixed_with_nothing_cost_what_they_cost_unmixed():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    mixed = (torch.randint(4, (6,)), torch.ones(6))
    for cross_entropy in (CrossEntropy(), CrossEntropy(0.1, [1.0, 2.0, 3.0, 4.0])):
        torch.testing.assert_close(cross_entropy(logits, labels, mixed), cross_entropy(logits, labels))


def test_second_labels_are_relabelled_with_the_first():
    batch = Batch(
        torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), partner_labels=torch.tensor([1, 1]), ratios=torch.ones(2)
    )
    (changed,) = Relabelled([batch], [1, 0], ["b", "a"], "the loader")
    assert (changed.labels.tolist(), changed.partner_labels.tolist()) == ([1, 0], [0, 0])


@pytest.fixture
def settings(settings, eighty_digits, tmp_path):
    return {
        **settings, "data_dir": str(eighty_digits), "model": "CifarResNet-8", "image_size": 16, "batch_size": 16,
        "epochs": 3, "lr": 1e-6, "alpha": 1.0, "cache_dir": str(tmp_path / "cache"), "augment": True,
        "mixup": 0.4, "cutmix": 1.0,
    }  # fmt: skip


@pytest.mark.slow
def test_the_teacher_answers_the_mixed_pixels_themselves_from_memory_too(settings, teacher):
    settings["augment_views"] = 2
    remembered = train_at({**settings, "experiment_name": "remembered"}, teacher=teacher)
    live = train_at({**settings, "experiment_name": "live", "teacher_cache": "off"}, teacher=teacher)
    log = Path(settings["log_dir"], "remembered.log").read_text()
    assert "epoch 3: 60 images answered from memory, 0 by the teacher's network" in log
    for ours, theirs in zip(*(run["training_history"] for run in (remembered, live)), strict=True):
        assert ours["train_attention"] == pytest.approx(theirs["train_attention"], rel=2e-3)
        assert ours["train_kd"] == pytest.approx(theirs["train_kd"], rel=2e-3)
    unmixed = {"experiment_name": "plain", "mixup": 0.0, "cutmix": 0.0, "epochs": 1}
    plain = train_at({**settings, **unmixed}, teacher=teacher)["training_history"][0]
    assert remembered["training_history"][0]["train_kd"] != pytest.approx(plain["train_kd"], rel=1e-2)


@pytest.mark.slow
def test_training_accuracy_counts_the_images_own_labels(settings, eighty_digits):
    """A network that tells each image's own label has accuracy 1, and a loss that mixing makes greater than 0."""
    loader, *_ = prepare_dataloaders(eighty_digits, 16, True, 0, image_size=32, augmentation=Augmentation(mixup=1.0))
    labels = torch.tensor(loader.dataset.targets)

    class Knows(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(9.0))
            self.order = []

        def forward(self, x):
            return self.scale * F.one_hot(labels[self.order.pop(0)], 10).float()

    student = Knows()
    batches = list(loader)
    student.order = [batch.indices for batch in batches]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    figures = train_epoch(student, None, batches, optimizer, "cpu")
    assert figures["accuracy"] == 1.0
    assert figures["classification"] > 1.0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"logit_loss": "dkd"}, r"'kd' \(DecoupledDistillation\) needs one label"),
        ({"attention": "gradient"}, r"'attention' \(AttentionTransfer\) needs one label"),
    ],
)
def test_terms_that_need_one_label_are_refused_before_training(settings, teacher, loss, message):
    with pytest.raises(ConfigError, match=message):
        train_at({**settings, **loss}, teacher=teacher)


def test_terms_that_need_one_label_are_refused_in_a_loop_of_ones_own(teacher, eighty_digits):
    loader, *_ = prepare_dataloaders(eighty_digits, 16, True, 0, image_size=32, augmentation=Augmentation(mixup=1.0))
    student = create_model("CifarResNet-8", 10)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="needs one label"):
        train_epoch(student, teacher, loader, optimizer, "cpu", {"alpha": 1.0, "logit_loss": "dkd", "dkd_warmup": 0})
