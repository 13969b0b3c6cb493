"""Sources that a stranger writes: images out of an archive and out of memory are as good as files in a folder."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.runs import assert_same_weights, without_clock

from attention_transfer import DataError, LoaderOptions, Source, prepare_dataloaders, source_loaders, train_at

pytestmark = pytest.mark.slow

OPTIONS = {"batch_size": 16, "augment": True, "num_workers": 0, "image_size": 32, "augment_views": 2}


class Archive:
    """One split of a zip file, whose members are named CLASS/FILE."""

    def __init__(self, path, names, classes):
        self.place = str(path)
        self.names = names
        self.classes = classes
        self.labels = [classes.index(name.partition("/")[0]) for name in names]

    def __len__(self):
        return len(self.names)

    def open(self, index):
        with zipfile.ZipFile(self.place) as archive:
            return archive.read(self.names[index])

    def identity(self, index):
        return self.names[index]

    def fingerprint(self, mark):
        return f"{self.place} {mark} {self.names}"


class Pixels(Archive):
    """The same, decoded beforehand."""

    def open(self, index):
        return np.asarray(Image.open(Path(self.place, self.names[index])).convert("RGB"))


@pytest.fixture
def splits(few_digits):
    """The names of the files of each split of the folder, in its order, and the classes."""
    loaders = prepare_dataloaders(few_digits, num_workers=0)
    return [[sample.relative for sample in loader.dataset.source.samples] for loader in loaders], loaders[
        0
    ].dataset.classes


@pytest.fixture
def sources(few_digits, splits, tmp_path):
    names, classes = splits
    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        for name in [name for of_split in names for name in of_split]:
            archive.write(few_digits / name, name)
    return {
        "archive": [Archive(tmp_path / "digits.zip", of_split, classes) for of_split in names],
        "pixels": [Pixels(few_digits, of_split, classes) for of_split in names],
    }


@pytest.fixture
def recipe(settings, tmp_path):
    own = {key: value for key, value in settings.items() if key not in ("data_dir", "image_size")}
    numbers = {"precision": "fp32", "teacher_precision": "fp32", "cache_dir": str(tmp_path / "cache")}
    return {**own, **numbers, "model": "CifarResNet-8", "epochs": 3}


@pytest.mark.parametrize("kind", ["archive", "pixels"])
def test_a_source_ends_in_the_weights_of_the_folder_and_its_teacher_is_cached(
    kind, sources, recipe, few_digits, teacher, tmp_path
):
    of_folder = train_at(recipe, *prepare_dataloaders(few_digits, **OPTIONS), teacher=teacher)
    own = {**recipe, "experiment_name": "own"}
    of_source = train_at(own, *source_loaders(*sources[kind], LoaderOptions(**OPTIONS)), teacher=teacher)
    assert_same_weights(of_folder["model"], of_source["model"])
    assert without_clock(of_folder["training_history"]) == without_clock(of_source["training_history"])
    assert of_folder["test_results"]["accuracy"] == of_source["test_results"]["accuracy"]
    again = {**own, "experiment_name": "again", "seed": 1}
    train_at(again, *source_loaders(*sources[kind], LoaderOptions(**OPTIONS)), teacher=teacher)
    assert "epoch 1: 80 images answered from memory, 0 by the" in (tmp_path / "logs" / "again.log").read_text()


def test_the_classes_that_come_with_the_library_are_sources():
    assert isinstance(Archive("x", ["a/1"], ("a", "b")), Source)


def test_a_damaged_member_is_named(sources):
    train, *_ = sources["archive"]
    train.open = lambda index: b"not an image"
    loader, *_ = source_loaders(train, options=LoaderOptions(num_workers=0))
    with pytest.raises(DataError, match=r"\d/\d+\.png of .*digits\.zip cannot be read as an image"):
        next(iter(loader))


class Lacking:
    classes = ("a", "b")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda source: Lacking(), "train is a Lacking, which lacks something of attention_transfer.Source"),
        (lambda source: source.labels.pop() and source, "train has 80 images and 79 labels"),
        (lambda source: source.labels.__setitem__(3, 10) or source, "train has the label 10, but 10 classes"),
    ],
)
def test_a_source_that_does_not_fit_itself_is_refused(sources, spoil, words):
    with pytest.raises(DataError, match=words):
        source_loaders(spoil(sources["archive"][0]))


def test_an_array_of_another_shape_is_refused(sources):
    train, *_ = sources["pixels"]
    train.open = lambda index: np.zeros((8, 8), np.uint8)
    loader, *_ = source_loaders(train, options=LoaderOptions(num_workers=0))
    with pytest.raises(DataError, match=r"an array of uint8 and shape \[8, 8\]; it must give RGB pixels"):
        next(iter(loader))
