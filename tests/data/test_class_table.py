"""How many images each class has in each split: counted without reading any, printed at the start, kept."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from support.runs import bring, tensors
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from attention_transfer import prepare_dataloaders, train_at
from attention_transfer.data.class_table import class_table, images_per_class


def test_the_table_has_a_row_for_each_class_and_a_column_for_each_split():
    counts = {"ant": {"train": 1087, "val": 18}, "honey bee": {"train": 900, "val": 0}}
    assert class_table(counts) == [
        "images per class  train  val",
        "ant               1,087   18",
        "honey bee           900    0",
        "sum of 2          1,987   18",
    ]


def test_of_many_classes_there_are_the_extremes_the_median_and_the_sum():
    counts = {f"class {number:03d}": {"train": number + 1, "test": 5} for number in range(200)}
    assert class_table(counts) == [
        "images per class    train   test",
        "most: class 199       200      5",
        "most: class 198       199      5",
        "most: class 197       198      5",
        "fewest: class 002       3      5",
        "fewest: class 001       2      5",
        "fewest: class 000       1      5",
        "median              100.5      5",
        "sum of 200         20,100  1,000",
        "the largest class of train has 200 times the images of the smallest",
    ]


@pytest.mark.parametrize(("fewest", "is_said"), [(6, True), (36, True), (37, False), (180, False)])
def test_very_unequal_classes_have_their_ratio_in_the_last_line(fewest, is_said):
    lines = class_table({"sound": {"train": 180}, "cracked": {"train": fewest}})
    assert (
        lines[-1] == f"the largest class of train has {180 / fewest:.3g} times the images of the smallest"
    ) is is_said


def test_our_loaders_are_counted(image_folder):
    root = image_folder({"train/ant": 30, "train/bee": 20, "val/ant": 7, "test/ant": 2, "test/bee": 3})
    loaders = dict(zip(("train", "val", "test"), prepare_dataloaders(root, num_workers=0), strict=True))
    assert images_per_class(loaders, ("ant", "bee")) == {
        "ant": {"train": 30, "val": 7, "test": 2},
        "bee": {"train": 20, "val": 0, "test": 3},
    }


class Counted(Dataset):
    """Tells its labels, and how often it was read."""

    def __init__(self, targets):
        self.targets, self.reads = targets, 0

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        self.reads += 1
        return torch.zeros(3, 16, 16), int(self.targets[index])


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_a_data_set_of_the_users_is_counted_by_its_targets_without_a_pass(kind):
    dataset = Counted(kind([0, 1, 1, 1]))
    counted = images_per_class({"train": DataLoader(dataset, shuffle=True), "val": [tensors()]}, ("ant", "bee"))
    assert counted == {"ant": {"train": 1}, "bee": {"train": 3}}
    assert dataset.reads == 0


def test_subsets_and_torchvisions_folders_are_counted(image_folder):
    folder = ImageFolder(image_folder({"ant": 3, "bee": 5}), transform=v2.ToImage())
    counted = images_per_class({"train": DataLoader(Subset(folder, range(2, 6)))}, ("ant", "bee"))
    assert counted == {"ant": {"train": 1}, "bee": {"train": 3}}


@pytest.mark.parametrize(
    "loader",
    [
        [tensors()],
        DataLoader(Counted([0, 1, 1, 1]), sampler=SubsetRandomSampler([0, 1])),
        DataLoader(Counted([0, 1, 1, 1]), batch_sampler=[[0, 1], [2]]),
        DataLoader(Counted([0, 1, 1, 7])),
        DataLoader(Counted([])),
    ],
    ids=["a list", "some of the images", "batches of the user's own", "a label that is no class", "empty"],
)
def test_what_is_not_known_is_not_counted(loader):
    assert images_per_class({"train": loader}, ("ant", "bee")) is None


def test_the_table_is_in_the_log_once_and_the_figures_are_in_the_summary(settings, tmp_path, capsys):
    train_at({**settings, "model": "CifarResNet-8", "epochs": 2})
    log = (tmp_path / "logs" / "run.log").read_text()
    assert log.count("images per class  train  val  test") == 1
    assert "3                     8    2     2" in log
    assert "sum of 10            80   20    20" in log
    assert "images per class  train  val  test" in capsys.readouterr().out
    kept = json.loads((tmp_path / "logs" / "run_summary.json").read_text())["images_per_class"]
    assert kept == {str(digit): {"train": 8, "val": 2, "test": 2} for digit in range(10)}


def test_without_a_loader_that_tells_there_is_no_table(settings, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train_at(bring(settings), [tensors()])
    assert "images per class" not in caplog.text
    assert json.loads((tmp_path / "logs" / "run_summary.json").read_text())["images_per_class"] is None
