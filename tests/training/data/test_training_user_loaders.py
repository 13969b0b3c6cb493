"""train_at with loaders, students and teachers that the user brings."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from support.runs import Unsized, assert_same_weights, bring, tensors
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from attention_transfer import ConfigError, DataError, create_model, load_model, train_at, validate


@pytest.mark.parametrize("kind", ["dataloader", "list", "unsized dicts", "one left over"])
def test_any_loader_works(settings, teacher, kind):
    count = 17 if kind == "one left over" else 20
    x, y = tensors(count)
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    batches = list(zip(x.split(8), y.split(8), strict=True))
    chosen = {"dataloader": loader, "one left over": loader, "list": batches, "unsized dicts": Unsized(batches)}[kind]
    results = train_at({**bring(settings), "data_dir": "nowhere"}, chosen, chosen, chosen, teacher=teacher)
    assert results["config"]["num_classes"] == 4
    assert results["config"]["class_names"] is None
    assert list(results["test_results"]["per_class"]) == ["0", "1", "2", "3"]
    assert results["test_results"]["samples"] == count


def test_a_last_batch_of_one_is_learned_from_where_batch_normalisation_has_no_variance(settings, caplog):
    x, y = tensors(9)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    with caplog.at_level(logging.INFO, "attention_transfer"):
        train_at(bring(settings), [(x[:8], y[:8]), (x[8:], y[8:])], student=net)
    assert caplog.text.count("a single image") == 1


def test_a_generator_is_refused_before_training(settings):
    x, y = tensors()
    with pytest.raises(DataError, match="train_loader is a generator, which ends after one pass"):
        train_at(bring(settings), (batch for batch in [(x, y)]))


def test_without_a_val_loader_the_last_epoch_is_the_best_and_data_dir_is_not_read(settings, tmp_path):
    x, y = tensors()
    results = train_at({**bring(settings), "data_dir": "nowhere", "epochs": 2}, [(x, y)])
    assert results["test_results"] is None
    assert "val_accuracy" not in results["training_history"][0]
    assert load_model(tmp_path / "checkpoints" / "run_best.pth", "cpu")["epoch"] == 2
    assert (tmp_path / "logs" / "run.log").read_text().count("the last epoch counts as the best") == 1


def test_a_loader_of_the_users_wins_over_its_own_split_alone(settings):
    x, y = tensors(12, classes=10, size=32)
    results = train_at({**settings, "model": "CifarResNet-8"}, test_loader=[(x, y)])
    assert results["test_results"]["samples"] == 12
    assert "val_accuracy" in results["training_history"][0]


class Named(Dataset):
    classes = ("ant", "bee", "cat", "dog")

    def __init__(self):
        self.x, self.y = tensors()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], int(self.y[index])


def test_class_names_come_from_the_data_set_through_subsets(settings):
    loader = DataLoader(Subset(Subset(Named(), range(16)), range(12)), batch_size=4)
    results = train_at(bring(settings), loader)
    assert results["config"]["class_names"] == ("ant", "bee", "cat", "dog")


def test_labels_are_counted_in_one_logged_pass(settings, caplog):
    with caplog.at_level(logging.INFO, "attention_transfer"):
        train_at(bring(settings), [tensors()])
    assert caplog.text.count("counted in one pass") == 1


class Viewing(nn.Module):
    """Flattens by view, which fails on channels-last features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.head = nn.Linear(4 * 7 * 7, 4)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.view(x.size(0), -1))


def test_a_module_of_the_users_learns_from_one_of_the_users(settings):
    x, y = tensors()
    results = train_at({**bring(settings), "epochs": 2}, [(x, y)], student=Viewing(), teacher=Viewing())
    assert results["training_history"][1]["train_attention"] > 0
    assert isinstance(results["model"], Viewing)


class Flat(nn.Module):
    """A network without a single map."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))

    def forward(self, x):
        return self.layers(x)


def test_a_student_without_maps_learns_alone_and_by_distillation(settings):
    x, y = tensors()
    train_at(bring(settings), [(x, y)], [(x, y)], student=Flat())
    kd = {**bring(settings), "alpha": 1.0, "beta": 0.0, "overwrite": True}
    results = train_at(kd, [(x, y)], [(x, y)], student=Flat(), teacher=Flat())
    assert results["training_history"][0]["train_kd"] > 0
    with pytest.raises(ConfigError, match="layers"):
        train_at({**kd, "beta": 1.0}, [(x, y)], student=Flat(), teacher=Flat())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_a_wrapped_student_is_saved_without_its_wrapper(settings, tmp_path, wrap):
    x, y = tensors()
    results = train_at(bring(settings), [(x, y)], [(x, y)], student=wrap(create_model("CifarResNet-8", 4)))
    loaded = load_model(tmp_path / "checkpoints" / "run_best.pth", "cpu")["model"]
    assert_same_weights(
        loaded, results["model"]._orig_mod if hasattr(results["model"], "_orig_mod") else results["model"].module
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_of_another_float_type_are_taken(settings, teacher, dtype):
    x, y = tensors()
    results = train_at(
        bring(settings), [(x.to(dtype), y)], None, [(x.to(dtype), y)], teacher=copy.deepcopy(teacher).double()
    )
    assert results["test_results"]["samples"] == 20


def test_a_replaced_head_is_what_the_checkpoint_holds(settings, tmp_path):
    x, y = tensors(classes=2)
    net = create_model("CifarResNet-8", 10)
    net.linear = nn.Linear(64, 2)
    results = train_at(bring(settings), [(x, y)], student=net)
    assert_same_weights(load_model(tmp_path / "checkpoints" / "run_best.pth", "cpu")["model"], results["model"])


def test_an_empty_batch_is_passed_over_and_nothing_but_empty_ones_is_an_error():
    x, y = tensors()
    model = create_model("CifarResNet-8", 4)
    assert validate(model, None, [(x[:0], y[:0]), (x, y)], "cpu", {}) == validate(model, None, [(x, y)], "cpu", {})
    with pytest.raises(DataError, match="no batch"):
        validate(model, None, [(x[:0], y[:0])], "cpu", {})


def test_an_empty_loader_is_an_error():
    model = create_model("CifarResNet-8", 4)
    with pytest.raises(DataError, match="no batch"):
        validate(model, None, Unsized([]), "cpu", {})
