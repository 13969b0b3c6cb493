"""Label smoothing and class weights: they change the cross-entropy that is trained on, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from support.runs import assert_same_weights, bring, without_clock
from torch.utils.data import DataLoader, TensorDataset

from attention_transfer import ConfigError, compute_at_loss, create_model, train_at, validate
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.losses.classification import CrossEntropy

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 1, 2, 3, 3])
WEIGHTS = [0.5, 2.0, 0.25, 1.25]


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return create_model("CifarResNet-8", 4).eval(), create_model("CifarResNet-8", 4).eval()


def by_definition(logits, labels, smoothing, weights):
    """The mean over a batch in NumPy's double precision, image by image and class by class."""
    logits, classes = np.asarray(logits, np.float64), logits.shape[1]
    total = of_labels = 0.0
    for row, label in zip(logits, labels, strict=True):
        log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
        for c in range(classes):
            target = (1 - smoothing) * (c == label) + smoothing / classes
            total -= target * weights[c] * log_p[c]
        of_labels += weights[label]
    return total / of_labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_it_is_its_definition(smoothing, weights):
    logits = 5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    expected = by_definition(logits, LABELS.tolist(), smoothing, weights or [1.0] * 4)
    assert float(CrossEntropy(smoothing, weights)(logits, LABELS)) == pytest.approx(expected, rel=1e-6)


def test_kd_and_attention_are_left_as_they_are(networks):
    student, teacher = networks
    plain = compute_at_loss(student, teacher, IMAGES, LABELS, {"alpha": 0.5})
    changed = compute_at_loss(
        student, teacher, IMAGES, LABELS, {"alpha": 0.5, "label_smoothing": 0.2, "class_weights": WEIGHTS}
    )
    assert changed.classification != plain.classification
    assert (changed.kd, changed.attention) == (plain.kd, plain.attention)
    expected = CrossEntropy(0.2, WEIGHTS)(plain.logits, LABELS)
    torch.testing.assert_close(changed.total, plain.total - plain.classification + expected)


def test_validation_measures_the_plain_cross_entropy(networks):
    student, teacher = networks
    loader = [(IMAGES, LABELS)]
    recipe = {"label_smoothing": 0.2, "class_weights": WEIGHTS}
    assert validate(student, teacher, loader, "cpu", recipe) == validate(student, teacher, loader, "cpu")


@pytest.mark.slow
def test_a_run_trains_on_the_one_and_validates_by_the_other(settings):
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=6)
    common = {**bring(settings), "lr": 1e-9, "label_smoothing": 0.3, "class_weights": WEIGHTS, "momentum": 0.0}
    student = create_model("CifarResNet-8", 4).requires_grad_(True)
    [record] = train_at(common, loader, loader, student=student)["training_history"]
    trained, measured = record["train_classification"], record["val_classification"]
    with torch.no_grad():
        logits = student.eval()(IMAGES)
        assert measured == pytest.approx(float(CrossEntropy()(logits, LABELS)), rel=1e-4)
        logits = student.train()(IMAGES)
        assert trained == pytest.approx(float(CrossEntropy(0.3, WEIGHTS)(logits, LABELS)), rel=1e-4)


def imbalanced(image_folder):
    return str(image_folder({f"{s}/{c}": n for s in ("train", "val", "test") for c, n in (("ant", 12), ("bee", 4))}))


@pytest.mark.slow
def test_weights_of_auto_are_by_inverse_frequency_one_on_average_told_and_kept(settings, image_folder, tmp_path):
    folder = imbalanced(image_folder)
    common = {**settings, "data_dir": folder, "image_size": 8, "model": "CifarResNet-8"}
    results = train_at({**common, "class_weights": "auto"})
    assert results["config"]["class_weights"] == "auto"
    kept = read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["training"]["class_weights"]
    assert kept == pytest.approx([0.5, 1.5])
    assert json.loads((tmp_path / "logs" / "run_summary.json").read_text())["class_weights"] == kept
    assert "class_weights 'auto': ant 0.5, bee 1.5" in (tmp_path / "logs" / "run.log").read_text()
    by_hand = train_at({**common, "class_weights": kept, "experiment_name": "by-hand"})
    assert without_clock(by_hand["training_history"]) == without_clock(results["training_history"])
    assert_same_weights(by_hand["model"], results["model"])
    again = train_at({**common, "class_weights": "auto", "epochs": 2, "resume": "auto"})
    assert len(again["training_history"]) == 2


def test_auto_goes_by_the_numbers_of_the_run_where_a_loader_has_others(settings, tmp_path):
    data = TensorDataset(IMAGES, LABELS)
    data.targets, data.classes = LABELS, ["d", "c", "b", "a"]
    loader = DataLoader(data, batch_size=6)
    train_at({**bring(settings), "class_weights": "auto", "class_names": list("abcd")}, loader)
    kept = read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["training"]["class_weights"]
    inverse = np.array([1 / 3, 1, 1, 1])
    assert kept == pytest.approx((inverse / inverse.mean()).tolist())


def test_auto_needs_the_number_of_images_of_every_class(settings, image_folder):
    common = {**bring(settings), "class_weights": "auto"}
    with pytest.raises(ConfigError, match=r"how many training images each class has is unknown.*give class_weights as"):
        train_at(common, [(IMAGES, LABELS)])
    data = TensorDataset(IMAGES, LABELS)
    data.targets = LABELS
    with pytest.raises(ConfigError, match="the class '4' has no training images"):
        train_at({**common, "num_classes": 5}, DataLoader(data, batch_size=6))
    with pytest.raises(ConfigError, match="train_at alone can work out"):
        compute_at_loss(create_model("CifarResNet-8", 4), None, IMAGES, LABELS, {"class_weights": "auto"})


def test_a_list_has_one_number_for_each_class(settings):
    with pytest.raises(ConfigError, match="class_weights has 2 numbers, but there are 10 classes"):
        train_at({**settings, "class_weights": [1, 2]})
    student = create_model("CifarResNet-8", 4)
    with pytest.raises(ConfigError, match="has 2 numbers, but the network tells 4 classes apart"):
        compute_at_loss(student, None, IMAGES, LABELS, {"class_weights": [1, 2]})


def test_the_balanced_sampler_is_refused_for_a_loader_with_a_sampler_of_its_own(settings):
    with pytest.raises(ConfigError, match=r"train_loader has a sampler of its own; make the loader with prepare"):
        train_at({**bring(settings), "sampler": "balanced"}, [(IMAGES, LABELS)])


def test_balancing_twice_is_refused(settings):
    with pytest.raises(ConfigError, match="would balance the classes twice"):
        train_at({**settings, "sampler": "balanced", "class_weights": "auto"})


@pytest.mark.slow
def test_a_remembered_teacher_answers_for_images_that_come_up_twice(settings, teacher, image_folder, tmp_path):
    common = {
        **settings, "data_dir": imbalanced(image_folder), "image_size": 32, "model": "CifarResNet-8", "epochs": 3,
        "sampler": "balanced", "cache_dir": str(tmp_path / "cache"), "map_precision": "fp32",
    }  # fmt: skip
    live = train_at({**common, "teacher_cache": "off"}, teacher=teacher)
    remembered = train_at({**common, "teacher_cache": "on", "experiment_name": "cached"}, teacher=teacher)
    assert "as they come up first" in (tmp_path / "logs" / "cached.log").read_text()
    for one, other in zip(live["training_history"], remembered["training_history"], strict=True):
        assert other["train_attention"] == pytest.approx(one["train_attention"], rel=1e-4)
