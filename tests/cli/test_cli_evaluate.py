"""`attention-transfer evaluate`: which images are measured, and under which names."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from attention_transfer import create_model, train_at
from attention_transfer.cli.app import main
from attention_transfer.errors import DataError

pytestmark = pytest.mark.slow

DIGITS = "0123456789"
ANIMALS = {"0": "ant", "1": "bee", "2": "cat", "3": "dog", "4": "eel", "5": "fox", "6": "gnu", "7": "hen", "8": "ibis",
           "9": "jay"}  # fmt: skip


@pytest.fixture(scope="module")
def trained(eighty_digits, tmp_path_factory):
    """The checkpoint of a run on eighty digits, ten of which its test split has."""
    folder = tmp_path_factory.mktemp("trained")
    train_at(
        {
            "model": "CifarResNet-8", "data_dir": str(eighty_digits), "image_size": 16, "num_workers": 0, "epochs": 3,
            "device": "cpu", "precision": "fp32", "lr": 0.05, "batch_size": 16, "experiment_name": "run",
            "save_dir": str(folder / "checkpoints"), "log_dir": str(folder / "logs"),
        }
    )  # fmt: skip
    return folder / "checkpoints" / "run_last.pth"


def in_process(*words):
    with pytest.raises(SystemExit) as ending:
        main([str(word) for word in words])
    return ending.value.code


def copied(source, target, names):
    """A folder with some of the classes of another, by the names that they get."""
    for old, new in names.items():
        shutil.copytree(source / old, target / new)
    return target


@pytest.fixture
def measure(trained, tmp_path, capsys):
    """Runs `evaluate`, and gives its first line, its whole output, and its figures."""

    def run(*words, checkpoint=trained):
        capsys.readouterr()
        code = in_process("evaluate", checkpoint, "--json", tmp_path / "figures.json", "--device", "cpu", *words)
        assert code == 0, capsys.readouterr().err
        printed = capsys.readouterr().out
        return printed.splitlines()[0], printed, json.loads((tmp_path / "figures.json").read_text())

    return run


@pytest.fixture
def refusal(trained, capsys):
    """Runs an `evaluate` that must be refused, and gives its sentence."""

    def run(*words):
        capsys.readouterr()
        assert in_process("evaluate", trained, "--device", "cpu", *words) == 2
        return capsys.readouterr().err

    return run


def test_of_the_folder_of_the_training_only_what_it_left_out_is_measured(measure, trained, eighty_digits):
    first, _, report = measure()
    assert first == f"{trained} on the test split, 10 images cut from {eighty_digits} with split_seed 0"
    assert report["samples"] == 10
    assert measure("--data-dir", eighty_digits)[2]["confusion_matrix"] == report["confusion_matrix"]


def test_a_moved_folder_of_the_training_is_known_again(measure, eighty_digits, tmp_path):
    moved = copied(eighty_digits, tmp_path / "moved", {name: name for name in DIGITS})
    first, _, report = measure("--data-dir", moved)
    assert f"on the test split, 10 images cut from {moved}" in first
    assert report["confusion_matrix"] == measure()[2]["confusion_matrix"]


def test_a_new_folder_is_measured_whole_also_with_a_single_image_of_a_class(measure, trained, digits_folder, tmp_path):
    new = tmp_path / "new"
    for name in DIGITS:
        (new / name).mkdir(parents=True)
        for file in sorted((digits_folder / name).iterdir())[20 : 21 + int(name)]:
            shutil.copy(file, new / name)
    first, _, report = measure("--data-dir", new)
    assert first == f"{trained} on all 55 images of {new}"
    assert report["samples"] == 55
    assert [row["support"] for row in report["per_class"].values()] == list(range(1, 11))


def test_split_chooses_what_is_measured(measure, eighty_digits, tmp_path):
    assert " on the val split, 10 images cut from " in measure("--split", "val")[0]
    first, _, report = measure("--split", "train")
    assert f"on the train split, 60 images of {eighty_digits} without those cut for val and test" in first
    assert report["samples"] == 60
    first, _, report = measure("--split", "all")
    assert first.endswith(f"all 80 images of {eighty_digits}, from most of which the network has learned")
    assert report["samples"] == 80
    new = copied(eighty_digits, tmp_path / "new", {name: name for name in DIGITS[:9]})
    assert "on the test split, 9 images cut from" in measure("--data-dir", new, "--split", "test")[0]


def test_another_seed_of_the_cut_would_measure_what_was_learned_and_is_refused(refusal, eighty_digits, tmp_path):
    assert "split_seed is 3, but training cut its images with 0" in refusal("--split-seed", 3)
    moved = copied(eighty_digits, tmp_path / "moved", {name: name for name in DIGITS})
    assert "leave --split-seed out" in refusal("--data-dir", moved, "--split-seed", 3)
    assert "test_fraction is 0.3, but training cut its images with auto" in refusal("--test-fraction", 0.3)


def test_a_test_cut_from_images_that_were_all_learned_from_is_refused(image_folder):
    from attention_transfer.cli.trained_on import Training
    from attention_transfer.config import resolve_config
    from attention_transfer.data.sources.split_cut import SplitCut

    folder = image_folder({f"{split}/{name}": 8 for split in ("train", "val") for name in ("ant", "bee")})
    training = Training(str(folder), None, SplitCut(test_fraction=0))
    assert training.was_on(resolve_config({"data_dir": str(folder), "test_fraction": 0}))
    with pytest.raises(DataError, match=r"test_fraction is 0\.2, but training cut its images with 0"):
        training.was_on(resolve_config({"data_dir": str(folder), "test_fraction": 0.2}))


def test_folders_of_splits_are_measured_as_they_are(measure, trained, refusal, eighty_digits, tmp_path):
    data = tmp_path / "data"
    every = {name: name for name in DIGITS}
    copied(eighty_digits, data / "train", every)
    copied(eighty_digits, data / "val", every)
    assert "holds train/ but no test/" in refusal("--data-dir", data)
    assert measure("--data-dir", data, "--split", "val")[0] == f"{trained} on the val split, 80 images of {data}"
    assert "on the test split, 10 images cut from" in measure("--data-dir", data, "--split", "test")[0]
    copied(eighty_digits, data / "test", every)
    assert measure("--data-dir", data)[0] == f"{trained} on the test split, 80 images of {data}"
    assert measure("--data-dir", data, "--split", "all")[0].endswith(f"on all 240 images of {data}")


def test_few_classes_of_the_network_are_measured_under_their_own_names(measure, eighty_digits, tmp_path):
    # '9' and '7' have other numbers in this folder than in the network
    few = copied(eighty_digits, tmp_path / "few", {"3": "3", "7": "7", "9": "9"})
    _, printed, report = measure("--data-dir", few)
    whole = measure("--split", "all")[2]
    assert {name: row["support"] for name, row in report["per_class"].items() if row["support"]} == dict.fromkeys(
        "379", 8
    )
    for label in (3, 7, 9):
        assert report["confusion_matrix"][label] == whole["confusion_matrix"][label]
    assert "the data set has 3 of the 10 classes of the network: they are matched by name" in printed


def test_classes_that_the_network_does_not_know_are_refused_with_both_lists(refusal, eighty_digits, tmp_path):
    animals = copied(eighty_digits, tmp_path / "animals", ANIMALS)
    said = refusal("--data-dir", animals)
    assert "the data set has the classes ant, bee, cat, dog, eel, fox, gnu, hen, ibis, jay" in said
    assert "and the network 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, which has no 'ant'" in said


def test_bare_weights_do_not_name_their_classes_which_is_said(measure, eighty_digits, tmp_path):
    torch.save(create_model("CifarResNet-8", 10).state_dict(), tmp_path / "bare.pth")
    animals = copied(eighty_digits, tmp_path / "animals", ANIMALS)
    words = ("--data-dir", animals, "--image-size", 32, "--num-workers", 0)
    first, printed, report = measure(*words, checkpoint=tmp_path / "bare.pth")
    assert first.endswith(f"on all 80 images of {animals}")
    assert list(report["per_class"]) == list(ANIMALS.values())
    assert "the network does not name its classes: class i of the network is taken for class i of the data" in printed
