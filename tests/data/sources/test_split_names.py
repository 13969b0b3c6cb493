"""Which folders are splits: the names that public data sets use, and what is refused because it is not clear."""

from __future__ import annotations

import logging
import os

import pytest

from attention_transfer.data import find_splits
from attention_transfer.data.sources.split_names import SplitName, means_unlabelled, read_split_name
from attention_transfer.errors import DataError

CLASSES = ("ant", "bee")


def layout(*folders, images=20):
    return {f"{folder}/{name}": images for folder in folders for name in CLASSES}


def places(samples):
    """The folders that the images of a split lie in, without those of the classes."""
    return {sample.relative.rsplit("/", 2)[0] for sample in samples}


@pytest.mark.parametrize(
    ("role", "names"),
    [
        (
            "train",
            "train Train TRAIN training Training trn train_set train-set trainset TrainSet training_set TrainingSet "
            "train_data training.data traindata train_images TrainingImages train2017 train_01 trainval "
            "train_val images_train",
        ),
        (
            "val",
            "val Val valid validation Validation val_set validset validation_data val2017 dev dev_set development",
        ),
        (
            "test",
            "test Test TESTING testing tst test1 test_set testset TestSet_2 testing_data test-images dataset-test",
        ),
        ("held out", "eval Evaluation evaluation_set holdout hold-out HoldOut held_out"),
        ("unlabelled", "pred prediction unlabelled Unlabeled test_unlabelled train_unlabeled"),
    ],
)
def test_the_usual_names_of_splits_are_known_in_any_spelling(role, names):
    for name in names.split():
        assert read_split_name(name) == SplitName(role, ""), name


@pytest.mark.parametrize(
    ("name", "role", "of"),
    [
        ("seg_train", "train", "seg"), ("seg_pred", "unlabelled", "seg"), ("cats_train", "train", "cats"),
        ("dogs-and-cats.test", "test", "dogs and cats"), ("CatsTrain", "train", "cats"),
        ("val_flowers", "val", "flowers"),
    ],
)  # fmt: skip
def test_a_name_may_also_hold_that_of_the_data_set(name, role, of):
    assert read_split_name(name) == SplitName(role, of)


@pytest.mark.parametrize(
    "name",
    ["tr", "ts", "te", "va", "trainer", "testament", "valley", "device", "trains", "ant", "0", "", "train_test_split"],
)
def test_other_words_are_no_splits(name):
    assert read_split_name(name) is None


def test_words_that_can_be_no_class_are_told_from_those_that_can():
    assert all(means_unlabelled(name) for name in ("unknown", "test", "Images", "test_images", "all", "unlabelled"))
    assert not any(means_unlabelled(name) for name in ("ant", "0", "unknown_species", "test_tube", "seg_test", "__"))


PUBLIC = {
    "brain tumour MRI": (("Training", "Testing"), {"train": "Training", "val": "Training", "test": "Testing"}),
    "chest X-ray": (("train", "val", "test"), {"train": "train", "val": "val", "test": "test"}),
    "Intel scenes": (
        ("seg_train/seg_train", "seg_test/seg_test"),
        {"train": "seg_train/seg_train", "val": "seg_train/seg_train", "test": "seg_test/seg_test"},
    ),
    "dogs and cats": (
        ("training_set/training_set", "test_set/test_set"),
        {"train": "training_set/training_set", "test": "test_set/test_set"},
    ),
    "monkeys": (
        ("training/training", "validation/validation"),
        {"train": "training/training", "val": "validation/validation", "test": "training/training"},
    ),
    "fruits 360": (("Training", "Test"), {"train": "Training", "test": "Test"}),
    "Imagenette": (("train", "val"), {"train": "train", "val": "val", "test": "train"}),
    "Flowers": (("train", "valid", "test"), {"train": "train", "val": "valid", "test": "test"}),
    "Food-11": (
        ("training", "validation", "evaluation"),
        {"train": "training", "val": "validation", "test": "evaluation"},
    ),
    "eval beside test": (("train", "eval", "test"), {"train": "train", "val": "eval", "test": "test"}),
    "a data set's name": (("cats_train", "cats_test"), {"train": "cats_train", "test": "cats_test"}),
    "images inside": (("train/images", "test/images"), {"train": "train/images", "test": "test/images"}),
    "digits": (("train1", "test1"), {"train": "train1", "test": "test1"}),
}


@pytest.mark.parametrize(("folders", "expected"), PUBLIC.values(), ids=PUBLIC)
def test_the_layouts_of_public_data_sets_are_read_as_they_are_meant(image_folder, folders, expected):
    splits = find_splits(image_folder(layout(*folders)))
    assert splits.classes == CLASSES
    for split, place in expected.items():
        assert places(getattr(splits, split)) == {place}


def test_a_pair_of_train_and_test_has_its_validation_images_cut_from_train(image_folder):
    splits = find_splits(image_folder(layout("Training", "Testing")))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (34, 6, 40)


def test_which_folder_is_which_split_is_said_where_the_name_is_another(image_folder, caplog):
    with caplog.at_level(logging.INFO):
        find_splits(image_folder(layout("Training", "Testing/Testing")))
    assert "train is Training/, test is Testing/Testing/" in caplog.text


def test_images_to_predict_are_passed_over_and_said(image_folder, caplog):
    root = image_folder(layout("seg_train/seg_train", "seg_test/seg_test") | {"seg_pred/seg_pred": 4})
    with caplog.at_level(logging.WARNING):
        splits = find_splits(root)
    assert len(splits.train) + len(splits.val) + len(splits.test) == 80
    assert "passed over: seg_pred" in caplog.text


def test_a_second_copy_and_loose_folders_beside_all_three_splits_are_passed_over(image_folder, caplog):
    root = image_folder(layout("train", "val", "test", "chest_xray/train", "chest_xray/test", "augmented"))
    with caplog.at_level(logging.WARNING):
        assert len(find_splits(root).train) == 40
    assert "passed over: augmented, chest_xray" in caplog.text


def test_multiple_fruits_beside_training_and_test_is_no_second_test(image_folder):
    splits = find_splits(image_folder(layout("Training", "Test") | {"test-multiple_fruits": 9, "papers": 0}))
    assert places(splits.test) == {"Test"}


@pytest.mark.parametrize("name", ["train", "test", "Training", "bullet_train", "test_tube", "dev"])
def test_a_class_may_be_called_like_a_split(image_folder, name):
    assert find_splits(image_folder({"boat": 3, name: 3})).classes == tuple(sorted(("boat", name)))


def test_names_that_only_sound_like_splits_of_each_other_are_classes(image_folder):
    classes = find_splits(image_folder({"steam_train": 3, "test_tube": 3, "val_ley": 3})).classes
    assert classes == ("steam_train", "test_tube", "val_ley")


def test_classes_may_hold_folders_that_they_do_not_share(image_folder):
    root = image_folder({"ant/summer": 3, "ant/winter": 3, "bee/summer": 3, "bee/hive": 3})
    assert find_splits(root).classes == CLASSES


MASKS = {"covid/masks": 2, "covid/images": 2, "normal/masks": 2, "normal/images": 2}
UNCLEAR = {
    "short": (layout("tr", "te"), r"te/ and tr/ with folders of the same names \(ant, bee\).*Rename them to train/"),
    "no names of splits": (layout("partA", "partB"), r"partA/ and partB/.*not clear which is which"),
    "nested": (layout("ersten/ersten", "zweiten/zweiten"), r"ersten/ and zweiten/"),
    "one of two is clear": (layout("train", "probe"), r"probe/ and train/"),
    "a second test": (layout("train", "val", "test", "test_extra"), r"test/ and test_extra/"),
    "variants": (layout("color", "grayscale", "segmented"), r"color/ and grayscale/.*move away what is neither"),
    "masks": (MASKS, r"images, masks.*if they are classes, put their images directly into them"),
    "two trains": (layout("Training", "train"), r"both Training/ and train/; keep one as train/"),
    "two tests": (layout("train", "test", "Testing"), r"both Testing/ and test/; keep one as test/"),
    "two held out": (layout("train", "eval", "holdout"), r"both eval/ and holdout/; keep one as test/"),
    "no train": (layout("Testing", "Validation"), r"holds Validation/ but no train/; add it"),
    "class and split in one name": (
        {f"{name}_{split}": 3 for name in ("cats", "dogs") for split in ("train", "test")},
        r"of 2 data sets or classes: cats_test/, cats_train/, dogs_test/, dogs_train/. Move them to train/",
    ),
    "images alone": (
        {"Training": 3, "Testing": 3, "labels": 1},
        r"Testing/ and Training/, which are called after splits but hold no class folders, beside labels/",
    ),
    "images of one data set alone": ({"cats_train": 3, "cats_test": 3}, r"holds no class folders"),
    "images alone in train": (
        {"Training": 3, "Testing/ant": 3, "Testing/bee": 3},
        r"Training holds no class folders",
    ),
    "a class or a split": (
        {"boat": 3, "plane": 3, "train/old": 3, "train/new": 3},
        r"boat/ and plane/ with images: it is not clear whether train/ is a split or a class",
    ),
}


@pytest.mark.parametrize(("counts", "message"), UNCLEAR.values(), ids=UNCLEAR)
def test_what_is_not_clear_is_refused_with_the_names_and_the_remedy(image_folder, counts, message):
    with pytest.raises(DataError, match=message):
        find_splits(image_folder(counts))


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no symbolic links")
def test_a_split_that_holds_itself_ends(image_folder):
    root = image_folder(layout("train"))
    (root / "test").mkdir()
    (root / "test" / "test").symlink_to(root / "test", target_is_directory=True)
    assert find_splits(root).test == ()


def test_a_library_that_once_told_training_from_testing_tells_the_classes_now(image_folder):
    splits = find_splits(image_folder(layout("Training", "Testing")))
    assert splits.classes == CLASSES
    assert {sample.label for sample in splits.test} == {0, 1}
