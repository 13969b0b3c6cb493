"""A data set as a table: the same training as from a folder, and errors that name the row."""

from __future__ import annotations

import csv
import logging

import pytest
import torch

from attention_transfer import train_at
from attention_transfer.data.sources.folder import find_splits, find_unsplit
from attention_transfer.errors import DataError


def write(path, rows, header=("path", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def rows_of(folder):
    """(path, label) of each image of a folder of class folders, in no order."""
    files = sorted(folder.glob("*/*.png"), key=lambda file: file.name[::-1])
    return [(file.relative_to(folder).as_posix(), file.parent.name) for file in files]


def trained(data, folder):
    folders = {key: str(folder / key) for key in ("save_dir", "log_dir", "cache_dir")}
    settings = {"model": "CifarResNet-8", "image_size": 32, "epochs": 1, "num_workers": 0, "device": "cpu"}
    return train_at({"data_dir": str(data), "precision": "fp32", **settings, **folders})


def test_a_table_trains_the_same_network_as_the_folder_that_it_lists(eighty_digits, tmp_path):
    table = write(eighty_digits.parent / "digits.csv", [])
    write(table, [(f"{eighty_digits.name}/{path}", label) for path, label in rows_of(eighty_digits)])
    inside = write(eighty_digits / "digits.csv", rows_of(eighty_digits))
    try:
        assert find_splits(inside) == find_splits(eighty_digits)
        one, other = trained(eighty_digits, tmp_path / "folder"), trained(inside, tmp_path / "table")
    finally:
        inside.unlink()
    for key, value in one["model"].state_dict().items():
        assert torch.equal(value, other["model"].state_dict()[key]), key
    assert [len(part) for part in (find_splits(table).train, find_unsplit(table).train)] == [60, 80]


def test_splits_of_a_table_go_by_their_usual_names(image_folder):
    root = image_folder({"ant": 4, "bee": 4})
    names = ["Training", "training", "valid", "TEST"]
    rows = [(f"{label}/{i:03}.png", label, name) for label in ("ant", "bee") for i, name in enumerate(names)]
    splits = find_splits(write(root / "all.tsv", rows, ("File", "Class", "Subset")))
    assert splits.classes == ("ant", "bee")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [4, 2, 2]
    assert splits.cut == ()


def test_numbers_are_classes_in_their_order(image_folder):
    root = image_folder({"x": 36})
    rows = [(f"x/{i:03}.png", i % 12) for i in range(36)]
    assert find_splits(write(root / "all.csv", rows)).classes == tuple(map(str, range(12)))


def test_absolute_paths_and_a_parquet_file_are_read(image_folder, tmp_path):
    import pyarrow
    from pyarrow import parquet

    root = image_folder({"ant": 4, "bee": 4})
    files = sorted(root.glob("*/*.png"))
    table = pyarrow.table({"image_path": list(map(str, files)), "target": [i // 4 for i in range(8)]})
    parquet.write_table(table, tmp_path / "all.parquet")
    splits = find_unsplit(tmp_path / "all.parquet")
    assert splits.classes == ("0", "1")
    assert [sample.path for sample in splits.train] == list(map(str, files))


def test_rows_of_test_may_have_no_label(image_folder, caplog):
    root = image_folder({"ant": 6, "bee": 6, "new": 2})
    rows = [(f"{label}/{i:03}.png", label, "train") for label in ("ant", "bee") for i in range(6)]
    rows += [(f"new/{i:03}.png", "", "test") for i in range(2)]
    with caplog.at_level(logging.WARNING, "attention_transfer"):
        splits = find_splits(write(root / "all.csv", rows, ("path", "label", "split")))
    assert splits.test == ()
    assert "2 rows of test" in caplog.text


@pytest.mark.parametrize(
    ("header", "extra", "words"),
    [
        (("path", "label"), [("ant/000.png", "ant")], r"lists ant/000.png twice, in rows 3 and 10"),
        (("path", "label"), [("./ant/../ant/000.png", "ant")], r"twice, in rows 3 \(as ant/000.png\) and 10"),
        (("path", "label"), [("ant/nix.png", "ant")], r"1 of the 9 files .* missing, or no files: ant/nix.png"),
        (("path", "label"), [("ant", "ant")], r"1 of the 9 files .* missing, or no files: ant\."),
        (("path", "label"), [("ant/\0.png", "ant")], r"(1 of the 9 files .* missing|cannot be read as a table)"),
        (("path", "label"), [("ant/004.png", "ant", "bee")], r"row 10 of .* has more cells than the header"),
        (("path", "label"), [(), ("", "ant")], r"row 11 of .* has no path"),
        (("path", "label"), [("", "ant")], r"row 10 of .* has no path"),
        (("path", "label"), [("ant/004.png", "")], r"row 10 of .* \(ant/004.png\) has no label"),
        (("path", "words"), [], r"no column for the label \(its columns: path, words\); name one label, class"),
        (("path", "label", "file"), [], r"several columns for the path: path, file"),
        (
            ("path", "label", "split"),
            [("ant/004.png", "ant", "some")],
            r"row 2 .* the split ''; write train, val or test",
        ),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused_with_the_row(image_folder, header, extra, words):
    root = image_folder({"ant": 4, "bee": 4})
    rows = [(*pair, *[""] * (len(header) - 2)) for pair in rows_of(root)]
    with pytest.raises(DataError, match=words):
        find_splits(write(root / "all.csv", [*rows, *extra], header))


def test_labels_that_are_the_same_number_are_refused(image_folder):
    root = image_folder({"x": 12})
    rows = [(f"x/{i:03}.png", ("1", "01", "2")[i % 3]) for i in range(12)]
    with pytest.raises(DataError, match="the labels 01 and 1, which are the same number"):
        find_splits(write(root / "all.csv", rows))


def test_a_file_has_one_name_however_its_path_is_spelled(image_folder):
    root = image_folder({"ant": 8, "bee": 8})
    plain = write(root / "plain.csv", rows_of(root))
    dotted = write(root / "dotted.csv", [(f"./{label}/../{path}", label) for path, label in rows_of(root)])
    one, other = ([sample.relative for sample in find_splits(table).train] for table in (plain, dotted))
    assert one == other


def test_classes_that_differ_in_case_or_are_not_measured_are_named(image_folder, caplog):
    root = image_folder({"ant": 4, "bee": 4})
    rows = [(f"ant/{i:03}.png", ("ant", "Ant")[i % 2], "train") for i in range(4)]
    rows += [(f"bee/{i:03}.png", "ant", ("val", "test")[i % 2]) for i in range(4)]
    with caplog.at_level(logging.WARNING, "attention_transfer"):
        find_splits(write(root / "all.csv", rows, ("path", "label", "split")))
    assert "classes that differ in case alone: Ant and ant" in caplog.text
    assert "has no val row of 1 of 2 classes, of which nothing is measured there: Ant" in caplog.text


def test_a_quoted_cell_and_a_mark_at_the_beginning_are_read(image_folder):
    root = image_folder({"a, b": 4, "bee": 4})
    write(root / "all.csv", rows_of(root))
    (root / "all.csv").write_bytes(b"\xef\xbb\xbf" + (root / "all.csv").read_bytes())
    assert find_splits(root / "all.csv").classes == ("a, b", "bee")


def test_of_a_parquet_file_only_text_and_whole_numbers_are_read(image_folder, tmp_path):
    import pyarrow
    from pyarrow import parquet

    files = sorted(map(str, image_folder({"ant": 4, "bee": 4}).glob("*/*.png")))
    # an integer column of which a cell is missing comes as floats
    labels, splits = [*[float(i % 2) for i in range(7)], None], [*["train"] * 6, "val", "test"]
    parquet.write_table(pyarrow.table({"path": files, "label": labels, "split": splits}), tmp_path / "all.parquet")
    found = find_splits(tmp_path / "all.parquet")
    assert (found.classes, len(found.train), len(found.val), found.test) == (("0", "1"), 6, 1, ())
    images = [{"bytes": b"png", "path": file} for file in files]
    parquet.write_table(pyarrow.table({"image": images, "label": labels}), tmp_path / "inside.parquet")
    with pytest.raises(DataError, match=r"row 1 of .* has a dict in its column image"):
        find_splits(tmp_path / "inside.parquet")


def test_a_class_of_a_table_that_is_too_small_to_cut_is_named(image_folder):
    root = image_folder({"ant": 4, "bee": 2})
    with pytest.raises(DataError, match=r"The class bee of .*all.csv has 2 images.* or give val and test rows"):
        find_splits(write(root / "all.csv", rows_of(root)))


def test_a_class_that_training_lacks_is_refused(image_folder):
    root = image_folder({"ant": 4, "bee": 4, "cow": 1})
    rows = [(f"{label}/{i:03}.png", label, "train") for label in ("ant", "bee") for i in range(4)]
    with pytest.raises(DataError, match="classes that no training row has: cow"):
        find_splits(write(root / "all.csv", [*rows, ("cow/000.png", "cow", "val")], ("path", "label", "split")))


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(DataError, match=r"bad.csv cannot be read as a table"):
        find_splits(tmp_path / "bad.csv")
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad.parquet cannot be read as a table"):
        find_splits(tmp_path / "bad.parquet")
