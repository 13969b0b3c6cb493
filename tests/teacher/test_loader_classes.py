"""The classes of the loaders, and those of a checkpoint that is evaluated or resumed, are matched by name."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from support.images.named_classes import DIGITS, ORDER, distilling, named
from support.runs import bring, tensors, without_clock
from torch.utils.data import DataLoader, Dataset

from attention_transfer import ConfigError, DataError, create_model, evaluate_model, load_model, train_at
from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.config import Config
from attention_transfer.data import prepare_dataloaders
from attention_transfer.networks.class_lists import network_classes
from attention_transfer.teacher.loading import load_teacher_model
from attention_transfer.training.setup.data.loaders import Loaders
from attention_transfer.training.setup.data.numbering import number_alike

pytestmark = pytest.mark.slow

ANIMALS = ("ant", "bee", "cat", "dog")


@pytest.fixture
def settings(settings, tmp_path):
    return distilling(settings, tmp_path)


class Pictures(Dataset):
    """Random images of four animals, numbered in the order of `classes`."""

    def __init__(self, classes=ANIMALS):
        self.classes = classes
        self.x, truth = tensors()
        self.names = [ANIMALS[label] for label in truth]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.classes.index(self.names[index])


def pictures(classes=ANIMALS):
    return DataLoader(Pictures(classes), batch_size=8)


@pytest.fixture
def alone(settings):
    """Settings of a run without a teacher on loaders of the user's."""
    return {**bring(settings), "alpha": 0.0, "epochs": 2}


def test_loaders_that_number_the_classes_otherwise_are_heard_by_name(alone, tmp_path):
    right = train_at(alone, pictures(), pictures(), pictures())
    other = ("dog", "cat", "ant", "bee")
    result = train_at(alone, pictures(), pictures(other), pictures(other))
    assert without_clock(result["training_history"]) == without_clock(right["training_history"])
    for key in ("accuracy", "per_class", "confusion_matrix", "loss"):
        assert result["test_results"][key] == right["test_results"][key]
    assert list(result["test_results"]["per_class"]) == list(ANIMALS)
    said = (tmp_path / "logs" / "run.log").read_text()
    assert "val_loader and the training set number the same classes differently: they are matched by name" in said


def test_a_test_loader_of_few_classes_measures_these(alone):
    few = Pictures(("dog", "bee"))
    keep = [index for index, name in enumerate(few.names) if name in few.classes]
    few.x, few.names = few.x[keep], [few.names[index] for index in keep]
    result = train_at(alone, pictures(), pictures(), DataLoader(few, batch_size=4))["test_results"]
    support = {name: row["support"] for name, row in result["per_class"].items()}
    assert support == {"ant": 0, "bee": 5, "cat": 0, "dog": 5}


def test_a_loader_with_a_class_of_its_own_is_refused_before_training(alone, tmp_path):
    with pytest.raises(DataError, match=r"test_loader has the classes ant, bee, cat, dogs, .* no 'dogs' \(but 'dog'\)"):
        train_at(alone, pictures(), pictures(), DataLoader(Renamed("dogs")))
    assert not (tmp_path / "checkpoints").exists()


class Renamed(Pictures):
    """The same, with another name for the dogs."""

    def __init__(self, name):
        super().__init__()
        self.classes = (*ANIMALS[:3], name)
        self.names = [name if each == "dog" else each for each in self.names]


def test_a_label_that_a_loader_has_no_name_for_is_told(alone):
    wrong = Beyond(("dog", "cat", "ant", "bee"))
    with pytest.raises(DataError, match="val_loader has a label 4, but names 4 classes"):
        train_at(alone, pictures(), DataLoader(wrong))


class Beyond(Pictures):
    """The same, with a label that is none of its classes."""

    def __getitem__(self, index):
        return self.x[index], 4


def test_a_loader_without_names_is_taken_by_its_numbers_which_is_said(alone, tmp_path):
    x, y = tensors()
    train_at(alone, pictures(), [(x, y)])
    said = (tmp_path / "logs" / "run.log").read_text()
    assert said.count("val_loader does not name its classes: class i of the training set is taken for class i of") == 1


def test_class_names_give_the_numbers_of_the_classes_of_a_folder(settings, few_digits):
    order = [DIGITS[position] for position in ORDER]
    train, val, test = prepare_dataloaders(few_digits, num_workers=0, image_size=32)
    mapped = Loaders(train, val, test, own=[train, val, test])
    number_alike(Config(class_names=tuple(order)), mapped)
    for loader in mapped.by_role().values():
        for batch in loader:
            folders = [Path(loader.dataset.source.samples[index].path).parent.name for index in batch.indices]
            assert [order[label] for label in batch.labels] == folders
    result = train_at({**settings, "alpha": 0.0, "class_names": order})
    assert list(result["test_results"]["per_class"]) == order
    train_at({"resume": str(Path(settings["save_dir"], "run_last.pth")), "epochs": 2})


def test_evaluate_finds_the_networks_classes_in_a_loader_of_any_order(caplog):
    torch.manual_seed(0)
    network = named(create_model("CifarResNet-8", 4), ANIMALS)
    right = evaluate_model(network, pictures())
    with caplog.at_level(logging.INFO, "attention_transfer"):
        other = evaluate_model(network, pictures(("dog", "cat", "bee", "ant")))
    assert other["confusion_matrix"] == right["confusion_matrix"]
    assert other["per_class"] == right["per_class"]
    assert "the data set and the network number the same classes differently" in caplog.text


def test_evaluate_refuses_classes_that_the_network_does_not_know():
    network = named(create_model("CifarResNet-8", 4), ANIMALS)
    with pytest.raises(DataError, match="has the classes ant, bee, cat, cow, and the network ant, bee, cat, dog"):
        evaluate_model(network, DataLoader(Renamed("cow")))


def test_evaluate_says_where_the_network_does_not_name_its_classes(caplog):
    with caplog.at_level(logging.INFO, "attention_transfer"):
        report = evaluate_model(create_model("CifarResNet-8", 4), pictures())
    assert list(report["per_class"]) == list(ANIMALS)
    assert caplog.text.count("the network does not name its classes") == 1
    own = torch.nn.Sequential(create_model("CifarResNet-8", 5))
    for unknown in (create_model("CifarResNet-8", 5), own):
        with pytest.raises(DataError, match=r"the network tells 5 classes apart, but the data set 4 \(ant, bee"):
            evaluate_model(unknown, pictures())


def test_the_same_run_does_not_go_on_with_its_classes_in_another_order(alone, tmp_path):
    train_at(alone, pictures(), pictures())
    path = str(tmp_path / "checkpoints" / "run_last.pth")
    other = ("dog", "cat", "bee", "ant")
    with pytest.raises(ConfigError, match=r"the classes ant, bee, cat, dog, and this run's data have dog, cat, bee"):
        train_at({**alone, "epochs": 3, "resume": path}, pictures(other), pictures(other))
    assert len(train_at({**alone, "epochs": 3, "resume": path}, pictures(), pictures())["training_history"]) == 3


def test_another_run_that_starts_there_finds_its_classes_by_name(alone, tmp_path):
    train_at(alone, pictures(), pictures())
    path = str(tmp_path / "checkpoints" / "run_last.pth")
    begin = {"epochs": 3, "resume": path, "save_dir": alone["save_dir"], "log_dir": alone["log_dir"]}
    right = train_at({**begin, "experiment_name": "right"}, pictures(), pictures())
    other = ("dog", "cat", "bee", "ant")
    result = train_at({**begin, "experiment_name": "other"}, pictures(other), pictures(other))
    assert result["config"]["class_names"] == ANIMALS
    assert without_clock(result["training_history"]) == without_clock(right["training_history"])


def test_another_run_that_starts_there_may_learn_other_classes_which_is_said(alone, tmp_path):
    train_at(alone, pictures(), pictures())
    path = str(tmp_path / "checkpoints" / "run_last.pth")
    begin = {"epochs": 3, "resume": path, "save_dir": alone["save_dir"], "log_dir": alone["log_dir"]}
    result = train_at({**begin, "experiment_name": "new"}, DataLoader(Renamed("cow"), 8), DataLoader(Renamed("cow"), 8))
    assert result["config"]["class_names"] == ("ant", "bee", "cat", "cow")
    assert "no 'cow'" in (tmp_path / "logs" / "new.log").read_text()


def test_nobodys_names_are_kept_apart_from_names_that_are_numbers(alone, tmp_path):
    x, y = tensors()
    path = tmp_path / "checkpoints" / "run_best.pth"
    result = train_at(alone, [(x, y)], [(x, y)])
    assert result["config"]["class_names"] is None
    assert load_model(path, "cpu")["class_names"] == ["0", "1", "2", "3"]
    assert network_classes(load_teacher_model(path, device="cpu")).names is None
    train_at({**alone, "class_names": ["0", "1", "2", "3"]}, [(x, y)], [(x, y)])
    assert network_classes(load_teacher_model(path, device="cpu")).names == ("0", "1", "2", "3")


def test_names_that_an_earlier_version_made_up_are_none(alone, tmp_path):
    x, y = tensors()
    path = tmp_path / "checkpoints" / "run_best.pth"
    train_at({**alone, "class_names": ["0", "1", "2", "3"]}, [(x, y)], [(x, y)])
    content = read_checkpoint(path)
    del content["training"]["data_classes"]
    write_checkpoint(path, {key: value for key, value in content.items() if key not in ("format", "version")})
    assert network_classes(load_teacher_model(path, device="cpu")).names is None
    loaded = load_model(path, "cpu")
    assert loaded["config"]["class_names"] is None
    assert evaluate_model(loaded["model"], pictures(), loaded["config"])["per_class"].keys() == set(ANIMALS)
