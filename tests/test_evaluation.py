"""What a network is worth, against scikit-learn and formulas, on the handwritten digits."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from attention_transfer import ConfigError, DataError, DivergenceError, create_model, evaluate_model
from attention_transfer.evaluation import count_multiply_adds
from attention_transfer.networks.registry import ModelCard


class Digits(Dataset):
    """The handwritten digits as normalised tensors [3, 16, 16]."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        pixels = torch.from_numpy(load_digits().images / 16).float() - 0.3
        self.images = pixels.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).unsqueeze(1).repeat(1, 3, 1, 1)
        self.labels = torch.from_numpy(load_digits().target)
        self.classes = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.images[index], int(self.labels[index])


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def loader(digits):
    return DataLoader(Subset(digits, range(1400, 1797)), batch_size=150)


@pytest.fixture(scope="module")
def network(digits):
    """A CifarResNet-8 after a few steps: often right, and wrong often enough."""
    torch.manual_seed(0)
    model = create_model("CifarResNet-8", 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(20):
        images, labels = digits.images[64 * step : 64 * step + 64], digits.labels[64 * step : 64 * step + 64]
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def truth(network, digits):
    """Logits and labels of the loader's images as NumPy arrays."""
    with torch.no_grad():
        return network(digits.images[1400:]).double().numpy(), digits.labels[1400:].numpy()


@pytest.fixture(scope="module")
def report(network, loader):
    return evaluate_model(network, loader)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def expected_calibration_error(probabilities, labels, bins=15):
    """Guo et al. 2017, equation 3, by its letter."""
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    of_bin = np.floor(confidence * bins)
    gaps = [
        (of_bin == b).sum() * abs(is_right[of_bin == b].mean() - confidence[of_bin == b].mean())
        for b in np.unique(of_bin)
    ]
    return sum(gaps) / len(labels)


def test_accuracies_and_loss_are_those_of_scikit_learn(report, truth):
    from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score

    logits, labels = truth
    assert 0.3 < report["accuracy"] < 1
    assert report["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(axis=1)), abs=1e-6)
    assert report["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5), abs=1e-6)
    assert report["loss"] == pytest.approx(log_loss(labels, softmax(logits)), rel=1e-4)
    assert report["samples"] == len(labels)


def test_figures_of_each_class_are_those_of_scikit_learn(report, truth, digits):
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    logits, labels = truth
    predicted = logits.argmax(axis=1)
    figures = precision_recall_fscore_support(labels, predicted, zero_division=0)
    for name, *expected in zip(digits.classes, *figures, strict=True):
        assert list(report["per_class"][name].values()) == pytest.approx(expected, abs=1e-6)
    assert list(report["per_class"]["zero"]) == ["precision", "recall", "f1", "support"]
    assert report["confusion_matrix"] == confusion_matrix(labels, predicted).tolist()


def test_calibration_error_is_that_of_its_formula(report, truth):
    logits, labels = truth
    assert report["calibration_error"] == pytest.approx(expected_calibration_error(softmax(logits), labels), abs=1e-5)


def test_logits_that_look_like_probabilities_are_still_logits(network, loader, truth):
    logits, labels = truth
    squashed = 1 / (1 + np.exp(-logits))
    result = evaluate_model(nn.Sequential(network, nn.Sigmoid()), loader)
    assert result["calibration_error"] == pytest.approx(expected_calibration_error(softmax(squashed), labels), abs=1e-5)


def test_a_report_is_plain_json(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert {name: type(report[name]) for name in ("samples", "parameters", "multiply_adds")} == {
        "samples": int,
        "parameters": int,
        "multiply_adds": int,
    }
    assert report["images_per_second"] > 0


def test_figures_do_not_depend_on_how_images_are_batched(network, digits, report):
    one_batch = evaluate_model(network, DataLoader(Subset(digits, range(1400, 1797)), batch_size=400))
    for figure in ("accuracy", "top5_accuracy", "loss", "calibration_error"):
        assert one_batch[figure] == pytest.approx(report[figure], rel=1e-4)
    assert one_batch["confusion_matrix"] == report["confusion_matrix"]


def test_a_network_is_left_as_it_was_found(network, loader):
    model = copy.deepcopy(network).train()
    model.bn1.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    evaluate_model(model, loader)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_class_without_images_has_zeros(network, digits):
    result = evaluate_model(network, DataLoader(Subset(digits, [i for i in range(300) if digits.labels[i] != 4])))
    assert result["per_class"]["four"]["support"] == 0
    assert result["per_class"]["four"]["recall"] == 0


def test_top5_of_four_classes_is_always_right(digits):
    is_small = [i for i in range(100) if digits.labels[i] < 4]
    images, labels = digits.images[is_small], digits.labels[is_small]
    result = evaluate_model(create_model("CifarResNet-8", 4), [(images, labels)])
    assert result["top5_accuracy"] == 1


@pytest.fixture
def batch(digits):
    return digits.images[:12], digits.labels[:12]


def test_names_come_from_the_settings_then_the_network_then_the_data(network, digits, batch):
    letters = tuple("abcdefghij")
    trained = copy.deepcopy(network)
    trained.card = ModelCard("CifarResNet-8", 10, tuple("klmnopqrst"))
    loader = DataLoader(Subset(digits, range(12)), batch_size=12)
    assert "".join(evaluate_model(trained, [batch], {"class_names": letters})["per_class"]) == "abcdefghij"
    assert "".join(evaluate_model(trained, [batch])["per_class"]) == "klmnopqrst"
    assert list(evaluate_model(network, loader)["per_class"]) == digits.classes
    assert list(evaluate_model(network, [batch])["per_class"]) == [str(label) for label in range(10)]


def test_logits_beyond_the_names_go_by_their_numbers(network, batch):
    names = evaluate_model(network, [batch], {"class_names": ["zero", "one"]})["per_class"]
    assert list(names) == ["zero", "one", "2", "3", "4", "5", "6", "7", "8", "9"]


@pytest.mark.parametrize("form", ["generator", "dict", "with an empty batch"])
def test_any_iterable_of_images_and_labels_is_taken(network, batch, form):
    images, labels = batch
    loaders = {
        "generator": (pair for pair in [batch]),
        "dict": [{"pixel_values": images, "labels": labels}],
        "with an empty batch": [(images[:0], labels[:0]), batch],
    }
    assert evaluate_model(network, loaders[form])["samples"] == 12


@pytest.mark.parametrize("wrong", [10, -1])
def test_a_label_outside_of_the_logits_is_named(network, batch, wrong):
    images, labels = batch
    with pytest.raises(DataError, match=f"a label is {wrong}, but the network tells 10 classes apart"):
        evaluate_model(network, [(images, torch.where(labels == 3, wrong, labels))])


@pytest.mark.parametrize("nothing", [[], [(torch.zeros(0, 3, 16, 16), torch.zeros(0, dtype=torch.int64))]])
def test_a_loader_without_images_is_refused(network, nothing):
    with pytest.raises(DataError, match="gave no image"):
        evaluate_model(network, nothing)


def test_a_network_that_is_no_classifier_is_refused(network, batch):
    with pytest.raises(ConfigError, match="single logit"):
        evaluate_model(create_model("CifarResNet-8", 1), [batch])
    with pytest.raises(ConfigError, match=r"shape \(12, 16, 16, 16\)"):
        evaluate_model(nn.Conv2d(3, 16, 3, padding=1), [batch])


def test_a_loss_that_is_no_number_is_refused(network, batch):
    images, labels = batch
    broken = images.clone()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(DivergenceError, match="the loss is nan after 12 good images"):
        evaluate_model(network, [batch, (broken, labels)])


def test_multiply_adds_of_resnet18_are_the_published_ones():
    # 1.81 G in torchvision's documentation of ResNet18_Weights
    model = create_model("ResNet18", 1000).eval()
    assert count_multiply_adds(model, torch.zeros(1, 3, 224, 224)) == 1_814_073_344


def test_costs_are_seen_through_wrappers(network, batch, report):
    wrapped = evaluate_model(nn.DataParallel(network), [batch])
    assert wrapped["multiply_adds"] == report["multiply_adds"]
    assert wrapped["parameters"] == report["parameters"] == sum(p.numel() for p in network.parameters())
