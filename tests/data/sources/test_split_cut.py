"""How much is cut from train where val or test is missing, and that it is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from attention_transfer import prepare_dataloaders, train_at
from attention_transfer.config import create_at_config
from attention_transfer.data.sources.base import Sample
from attention_transfer.data.sources.folder import find_splits
from attention_transfer.data.sources.split_cut import MOST_IMAGES, SplitCut, cut
from attention_transfer.errors import ConfigError, DataError


def many(classes, images):
    """As many images of each class."""
    return [Sample("", f"{label}/{i}.png", label, 0, 0) for label in range(classes) for i in range(images)]


def sizes(samples, how):
    parts = cut(samples, how.roles(["train"]), how, Path("train"), [str(i) for i in range(1000)])
    assert sorted(image.relative for part in parts.values() for image in part) == sorted(x.relative for x in samples)
    return {role: len(part) for role, part in parts.items()}


def test_a_split_of_a_large_data_set_holds_at_most_ten_thousand_images_unless_its_share_was_given():
    samples = many(100, 1000)
    assert sizes(samples, SplitCut()) == {"train": 80_000, "val": MOST_IMAGES, "test": MOST_IMAGES}
    assert sizes(samples, SplitCut(val_fraction=0.15)) == {"train": 75_000, "val": 15_000, "test": MOST_IMAGES}


def test_up_to_the_bound_15_in_100_of_each_class_are_cut_as_ever():
    assert sizes(many(4, 16_666), SplitCut()) == {"train": 4 * 11_666, "val": 4 * 2500, "test": 4 * 2500}
    for images in range(3, 300):
        assert sizes(many(1, images), SplitCut())["val"] == max(1, (15 * images + 50) // 100)


def test_a_given_share_is_cut_of_each_class_at_least_one_image(image_folder):
    root = image_folder({"ant": 40, "bee": 4})
    splits = find_splits(root, val_fraction=0.25, test_fraction=0.1)
    assert [sum(x.label == 0 for x in part) for part in (splits.train, splits.val, splits.test)] == [26, 10, 4]
    assert [sum(x.label == 1 for x in part) for part in (splits.train, splits.val, splits.test)] == [2, 1, 1]


def test_a_smaller_share_takes_a_part_of_the_same_images(image_folder):
    root = image_folder({"ant": 40, "bee": 40})
    tests = [{x.relative for x in find_splits(root, val_fraction=0.25, test_fraction=f).test} for f in (0.1, 0.3)]
    assert tests[0] < tests[1]


def test_without_a_test_fraction_nothing_is_set_aside_for_a_test(image_folder):
    root = image_folder({f"{split}/{name}": 20 for split in ("train", "val") for name in ("ant", "bee")})
    splits = find_splits(root, test_fraction=0)
    assert (len(splits.train), len(splits.val), splits.test, splits.is_tested) == (40, 40, (), False)
    assert splits.cut == ()
    assert prepare_dataloaders(root, test_fraction=0, num_workers=0)[2] is None


def test_a_test_folder_is_tested_on_whatever_the_fraction(image_folder):
    tested = image_folder({f"{split}/{name}": 20 for split in ("train", "test") for name in ("ant", "bee")})
    assert prepare_dataloaders(tested, test_fraction=0, num_workers=0)[2] is not None


def test_how_many_images_are_set_aside_and_how_to_keep_them_is_said(image_folder, caplog):
    root = image_folder({"train/ant": 20, "train/bee": 20})
    with caplog.at_level(logging.INFO, "attention_transfer"):
        find_splits(root)
        find_splits(root, test_fraction=0)
    both, val = caplog.messages
    assert both == (
        f"val and test cut from {root / 'train'} with split_seed 0: 6 and 6 of its 40 images are not trained on "
        "(val_fraction and test_fraction change that; test_fraction=0 keeps those of test, without test results)"
    )
    assert val == (
        f"val cut from {root / 'train'} with split_seed 0: 6 of its 40 images are not trained on (val_fraction changes "
        "that)"
    )


def test_a_run_without_a_test_has_no_test_results(eighty_digits, tmp_path):
    folders = {key: str(tmp_path / key) for key in ("save_dir", "log_dir", "cache_dir")}
    result = train_at(
        {
            "data_dir": str(eighty_digits), "model": "CifarResNet-8", "image_size": 32, "epochs": 1, "num_workers": 0,
            "device": "cpu", "test_fraction": 0.0, **folders,
        }
    )  # fmt: skip
    assert result["test_results"] is None
    [summary] = (tmp_path / "log_dir").glob("*_summary.json")
    assert json.loads(summary.read_text())["splits"] == {"train": 70, "val": 10}


@pytest.mark.parametrize(
    ("fractions", "words"),
    [
        ({"val_fraction": 0.6, "test_fraction": 0.39}, "4 images, of which 2 for val and 2 for test would be cut"),
        ({"val_fraction": 0}, "val_fraction is 0"),
        ({"test_fraction": 1}, "test_fraction is 1"),
        ({"test_fraction": -0.1}, "test_fraction is -0.1"),
        ({"val_fraction": "some"}, "val_fraction is 'some'"),
    ],
)
def test_a_share_that_cannot_be_is_refused(image_folder, fractions, words):
    root = image_folder({"ant": 4, "bee": 40})
    with pytest.raises(DataError, match=words):
        find_splits(root, **fractions)


def test_shares_that_leave_nothing_are_refused_with_the_settings():
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        create_at_config(val_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ConfigError, match="val_fraction"):
        create_at_config(val_fraction=0)
