"""Which files belong to which class and split."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, features
from torchvision.datasets.folder import IMG_EXTENSIONS

from attention_transfer.data.decoding.images import decode_image
from attention_transfer.data.sources.folder import find_splits
from attention_transfer.data.sources.image_files import image_suffixes
from attention_transfer.errors import DataError


def names(samples):
    return [sample.relative for sample in samples]


@pytest.fixture
def opened():
    """The names of the files that are opened. Python keeps an audit hook for ever, so that this one is told to rest."""
    names, listens = [], [True]
    sys.addaudithook(lambda event, args: names.append(args[0]) if event == "open" and listens else None)
    yield names
    listens.clear()


def sizes(splits):
    return len(splits.train), len(splits.val), len(splits.test)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_splits_that_the_user_made_are_left_alone(image_folder, val):
    root = image_folder({f"{split}/{name}": 2 for split in ("train", val, "test") for name in ("ant", "bee")})
    splits = find_splits(root)
    assert splits.classes == ("ant", "bee")
    assert names(splits.train) == ["train/ant/000.png", "train/ant/001.png", "train/bee/000.png", "train/bee/001.png"]
    assert names(splits.val) == [name.replace("train", val, 1) for name in names(splits.train)]
    assert [sample.label for sample in splits.test] == [0, 0, 1, 1]


def test_a_folder_of_class_folders_is_cut_70_15_15_in_every_class(image_folder):
    splits = find_splits(image_folder({"ant": 100, "bee": 20, "cow": 3}))
    for label, (whole, part) in enumerate([(100, 15), (20, 3), (3, 1)]):
        counts = [sum(sample.label == label for sample in split) for split in (splits.train, splits.val, splits.test)]
        assert counts == [whole - 2 * part, part, part]


def test_a_cut_uses_every_image_exactly_once(digits_folder):
    splits = find_splits(digits_folder)
    everything = names(splits.train) + names(splits.val) + names(splits.test)
    assert len(everything) == len(set(everything)) == 1797
    assert sizes(splits) == (1259, 269, 269)


@pytest.mark.parametrize(("missing", "given"), [("val", "test"), ("test", "val")])
def test_a_missing_split_is_cut_from_train_alone(image_folder, missing, given):
    root = image_folder({f"{split}/{name}": 20 for split in ("train", given) for name in ("ant", "bee")})
    splits = find_splits(root)
    assert len(splits.train) == 34
    assert len(getattr(splits, given)) == 40
    cut = getattr(splits, missing)
    assert Counter(sample.label for sample in cut) == {0: 3, 1: 3}
    assert all(name.startswith("train/") for name in names(cut))
    assert not set(names(cut)) & set(names(splits.train))


def test_val_and_test_missing_beside_a_train_folder_are_both_cut_from_it(image_folder):
    assert sizes(find_splits(image_folder({"train/ant": 20, "train/bee": 20}))) == (28, 6, 6)


def test_the_cut_is_the_same_wherever_the_folder_lies(image_folder, tmp_path):
    here = image_folder({"ant": 40, "bee": 40})
    there = shutil.copytree(here, tmp_path / "elsewhere" / "copy")
    assert names(find_splits(here).test) == names(find_splits(there).test)


def test_the_cut_never_changes_from_one_release_to_the_next(image_folder):
    splits = find_splits(image_folder({"ant": 10, "bee": 10}), split_seed=3)
    assert names(splits.val) == ["ant/002.png", "ant/007.png", "bee/005.png", "bee/009.png"]
    assert names(splits.test) == ["ant/000.png", "ant/005.png", "bee/006.png", "bee/007.png"]


def test_another_split_seed_cuts_other_images(digits_folder):
    assert names(find_splits(digits_folder, split_seed=0).test) != names(find_splits(digits_folder, split_seed=1).test)


def test_an_added_image_leaves_nearly_all_others_in_their_split(image_folder):
    root = image_folder({"ant": 100, "bee": 100})
    before = set(names(find_splits(root).test))
    shutil.copy(root / "ant" / "000.png", root / "ant" / "new.png")
    assert len(before - set(names(find_splits(root).test))) <= 1


def test_a_sample_knows_its_file(image_folder):
    root = image_folder({"train/ant": 3, "train/bee": 3})
    sample = find_splits(os.path.relpath(root)).train[0]
    status = (root / sample.relative).stat()
    assert sample.path == str(root / sample.relative)
    assert (sample.size, sample.mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_images_are_found_in_folders_below_a_class_folder(image_folder):
    root = image_folder({"ant/summer/south": 3, "ant/winter": 3, "bee": 3})
    assert sizes(find_splits(root)) == (5, 2, 2)


def test_every_suffix_that_pillow_opens_counts_as_an_image_in_either_case(tmp_path):
    assert image_suffixes() >= {*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".mpo", ".jp2"}
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for suffix in (*image_suffixes(), ".PNG"):
            (tmp_path / name / f"x{suffix}").touch()
    assert sum(sizes(find_splits(tmp_path))) == 2 * (len(image_suffixes()) + 1)


def test_documents_films_and_arrays_are_no_images_although_pillow_knows_their_suffixes(image_folder, caplog):
    assert not image_suffixes() & {
        ".pdf",
        ".eps",
        ".ps",
        ".wmf",
        ".emf",
        ".mpg",
        ".mpeg",
        ".fli",
        ".h5",
        ".hdf",
        ".iim",
    }
    root = image_folder({"train/ant": 3, "train/bee": 3})
    for name in ("train/ant/weights.h5", "train/ant/paper.pdf", "train/bee/paper.PDF", "train/bee/notes.txt"):
        (root / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert sum(sizes(find_splits(root))) == 6
    assert "4 files in" in caplog.text
    assert "2 .pdf, 1 .h5, 1 .txt" in caplog.text


def test_a_class_folder_of_files_that_cannot_be_read_here_says_which_they_are(image_folder):
    root = image_folder({"ant": 3, "bee": 0})
    for name in ("1.raw", "2.raw", "notes.txt"):
        (root / "bee" / name).touch()
    with pytest.raises(DataError, match=r"bee holds no image \(but 2 \.raw, 1 \.txt, which cannot be read here\); add"):
        find_splits(root)


def test_files_without_a_suffix_are_images_if_they_begin_like_one(image_folder, caplog):
    root = image_folder({"train/ant": 3, "train/bee": 3})
    for number, file_format in enumerate(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF")):
        if file_format == "AVIF" and not features.check("avif"):
            continue
        Image.new("RGB", (16, 16), "red").save(root / "train" / "ant" / str(number), format=file_format)
    count = len([*(root / "train" / "ant").iterdir()])
    (root / "train" / "bee" / "README").write_text("P5 is a format, and so is BM. " * 20)
    (root / "train" / "bee" / "LICENSE").touch()
    with caplog.at_level(logging.WARNING):
        splits = find_splits(root)
    assert len(splits.train) + len(splits.val) + len(splits.test) == count + 3
    assert "2 files in" in caplog.text
    assert "2 without a suffix" in caplog.text


def test_only_files_without_a_suffix_are_opened(image_folder, opened):
    root = image_folder({"ant": 3, "bee": 3})
    Image.new("RGB", (8, 8)).save(root / "ant" / "plain", format="PNG")
    (root / "ant" / "notes.txt").write_text("text")
    opened.clear()
    find_splits(root)
    assert [Path(name).name for name in opened if str(name).startswith(str(root))] == ["plain"]


def test_an_avif_and_a_jfif_file_are_read(image_folder):
    root = image_folder({"ant": 3, "bee": 3})
    Image.new("RGB", (8, 8), "red").save(root / "ant" / "x.jfif", format="JPEG")
    if features.check("avif"):
        Image.new("RGB", (8, 8), "red").save(root / "ant" / "x.avif")
    splits = find_splits(root)
    found = [sample for split in (splits.train, splits.val, splits.test) for sample in split]
    assert len(found) == 7 + features.check("avif")
    assert all(decode_image(sample.path).size == (8, 8) for sample in found)


def test_hidden_and_system_files_are_passed_over_in_silence(image_folder, caplog):
    root = image_folder({"train/ant": 3, "train/bee": 3, "train/ant/.ipynb_checkpoints": 2, "train/__MACOSX": 1})
    for name in (".DS_Store", "train/.DS_Store", "train/ant/._000.png", "train/ant/Thumbs.db", "train/bee/desktop.ini"):
        (root / name).touch()
    with caplog.at_level(logging.WARNING):
        assert sum(sizes(find_splits(root))) == 6
    assert not caplog.records


def test_other_files_are_passed_over_and_counted_in_the_log(image_folder, caplog):
    root = image_folder({"train/ant": 3, "train/bee": 3})
    for name in ("train/notes.txt", "train/loose.png", "train/ant/notes.txt"):
        (root / name).touch()
    with caplog.at_level(logging.WARNING):
        assert sum(sizes(find_splits(root))) == 6
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("3 files in")
    assert said.endswith("2 .txt, 1 image in no class folder")


def test_folders_beside_the_splits_are_passed_over_and_named_in_the_log(image_folder, caplog):
    root = image_folder({"train/ant": 3, "train/bee": 3, "raw": 5})
    with caplog.at_level(logging.WARNING):
        assert sum(sizes(find_splits(root))) == 6
    assert "passed over: raw" in caplog.text


def test_a_class_may_be_called_train(image_folder):
    assert find_splits(image_folder({"boat": 3, "train": 3})).classes == ("boat", "train")


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no symbolic links")
def test_a_link_to_a_folder_above_itself_ends(image_folder):
    root = image_folder({"ant": 3, "bee": 3})
    (root / "ant" / "loop").symlink_to(root / "ant", target_is_directory=True)
    assert sum(sizes(find_splits(root))) == 6


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no symbolic links")
def test_a_broken_link_is_an_error_that_names_it(image_folder):
    root = image_folder({"ant": 3, "bee": 3})
    (root / "ant" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        find_splits(root)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match=r"photos does not exist.*Expected are train/"):
        find_splits(tmp_path / "photos")


def test_a_file_instead_of_a_folder_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match=r"photo\.png is a file"):
        find_splits(tmp_path / "photo.png")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        pytest.param({"": 3}, r"data holds no class folders", id="loose images"),
        pytest.param({"train": 3}, r"train holds no class folders", id="loose images in train"),
        pytest.param({"train": 3, "test": 3}, r"test holds no class folders|train holds no class", id="loose splits"),
        pytest.param(
            {"train/ant": 3, "train/bee": 3, "val": 3}, r"val holds no image in a class.*cut from", id="loose val"
        ),
        pytest.param({"train/ant": 3, "train/bee": 0, "val/ant": 3}, r"train.bee holds no image", id="empty in train"),
        pytest.param({"ant": 3, "bee": 0}, r"bee holds no image; add images or remove", id="empty class"),
        pytest.param({"ant": 3, "bee": 2}, r"bee has 2 images, but val and test must be cut", id="too few to cut"),
        pytest.param(
            {"train/ant": 2, "train/bee": 3, "val/ant": 1, "val/bee": 1}, r"ant has 2 images, but test", id="3"
        ),
        pytest.param({"ant": 9}, r"a single class folder, ant/", id="one class"),
        pytest.param(
            {"photos/train/ant": 3, "photos/train/bee": 3},
            r"holds train: perhaps data_dir is to be .*photos\.",
            id="one folder too high",
        ),
        pytest.param({"val/ant": 3, "val/bee": 3}, r"holds val/ but no train/", id="no train"),
        pytest.param({f"{s}/{c}": 1 for s in ("train", "val", "valid") for c in "ab"}, r"both val/ and valid/", id="2"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named_with_the_remedy(image_folder, counts, message):
    with pytest.raises(DataError, match=message):
        find_splits(image_folder(counts))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_train_has_not_is_refused_with_both_lists_and_one_remedy(image_folder, split):
    root = image_folder({"train/ant": 3, "train/bee": 3, f"{split}/ant": 3, f"{split}/cow": 3})
    with pytest.raises(DataError) as refused:
        find_splits(root)
    message = str(refused.value)
    assert f"{root / split} has class folders that {root / 'train'} has not: cow" in message
    assert f"ant, bee in train, and ant, cow in {split}" in message
    assert f"Give each folder of {split} the name of a class of train, or remove it" in message
    assert "add" not in message.lower()


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_may_be_missing_or_empty_in_val_and_test_which_is_said(image_folder, caplog, split, empty):
    root = image_folder({f"{each}/{name}": 3 for each in ("train", "val", "test") for name in ("ant", "bee", "cow")})
    shutil.rmtree(root / split / "ant")
    if empty:
        (root / split / "ant").mkdir()
    with caplog.at_level(logging.INFO):
        splits = find_splits(root)
    assert splits.classes == ("ant", "bee", "cow")
    assert [sample.label for sample in getattr(splits, split)] == [1, 1, 1, 2, 2, 2]
    assert [sample.label for sample in splits.train] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert f"{root / split} has no image of 1 of 3 classes, of which nothing is measured there: ant" in caplog.text


@pytest.mark.parametrize("inside", ["", "unknown", "test", "images", "Unlabelled", "all_images"])
def test_a_test_folder_without_labels_is_said_once_and_nothing_is_cut_for_it(image_folder, caplog, inside):
    root = image_folder({"train/ant": 20, "train/bee": 20, f"test/{inside}": 5})
    with caplog.at_level(logging.WARNING):
        splits = find_splits(root)
    assert sizes(splits) == (34, 6, 0)
    assert sum("no test results" in record.getMessage() for record in caplog.records) == 1


def test_a_single_folder_in_test_that_may_be_a_class_is_refused(image_folder):
    root = image_folder({"train/ant": 20, "train/bee": 20, "test/bees": 5})
    with pytest.raises(DataError, match=r"bees in test.*images without labels lie in it directly"):
        find_splits(root)


def test_a_test_folder_with_nothing_but_empty_class_folders_gives_no_test_images(image_folder, caplog):
    root = image_folder({"train/ant": 20, "train/bee": 20, "test/ant": 0, "test/bee": 0})
    with caplog.at_level(logging.WARNING):
        assert sizes(find_splits(root)) == (34, 6, 0)
    assert "has no image of 2 of 2 classes" in caplog.text
