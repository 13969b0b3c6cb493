"""A flag or a key that is given twice is an error that shows what was given; a list grows."""

from __future__ import annotations

import pytest

from attention_transfer.cli.app import app, main
from attention_transfer.cli.repeated import occurrences
from attention_transfer.cli.settings_file import read_settings
from attention_transfer.config import resolve_config
from attention_transfer.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--lr", "0.1", "--lr", "0.2"], "--lr 0.1 and --lr 0.2"),
        (["train", "--lr=0.1", "--epochs", "3", "--lr", "0.2"], "--lr=0.1 and --lr 0.2"),
        (["train", "--lr", "0.1", "--lr", "0.1"], "--lr 0.1 and --lr 0.1"),
        (["train", "--batch_size", "3", "--batch-size", "4"], "--batch_size 3 and --batch-size 4"),
        (["train", "--overwrite", "--no-overwrite"], "--overwrite and --no-overwrite"),
        (["train", "--flip", "--augment", "--flip"], "--flip and --flip"),
        (["train", "--mean", "0", "0", "0", "--mean", "1", "-1", "1"], "--mean 0 0 0 and --mean 1 -1 1"),
        (["train", "--precision", "bf16", "--precision", "fp32"], "--precision bf16 and --precision fp32"),
        (["train", "--config", "a.yaml", "--config", "b.yaml"], "--config a.yaml and --config b.yaml"),
        (["evaluate", "x.pth", "--split", "val", "--split", "test"], "--split val and --split test"),
        (["cache", "clear", "--kind", "maps", "--kind", "pixels"], "--kind maps and --kind pixels"),
        (["train", "--lr", "1", "--lr", "2", "--lr", "3"], "--lr 1 and --lr 2 and --lr 3"),
    ],
)
def test_a_flag_that_is_given_twice_is_an_error_that_shows_both(words, told, capsys):
    with pytest.raises(SystemExit) as ending:
        main(words)
    assert ending.value.code == 2
    captured = capsys.readouterr()
    # the words, however wide the terminal is
    assert f"is given more than once: {told}; give it once." in " ".join(captured.err.replace("│", " ").split())
    assert not captured.out


def test_a_list_grows_when_its_flag_is_given_again():
    _, arguments, _ = app.parse_args(["train", "--layers", "a", "b", "--layers", "c:d"])
    assert arguments.kwargs["layers"] == ("a", "b", "c:d")


def test_a_flag_whose_name_begins_like_another_is_another():
    words = ["train", "--augment", "--augment-seed", "3", "--augment-views", "2"]
    _, arguments, _ = app.parse_args(words)
    assert arguments.kwargs == {"augment": True, "augment_seed": 3, "augment_views": 2}
    assert list(occurrences("--augment", words)) == ["--augment"]


def test_other_errors_of_the_command_line_are_told_as_before(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--epoch", "3"])
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lr: 0.1\nepochs: 3\nlr: 0.2\n", "lr is given more than once: 0.1 in line 1 and 0.2 in line 3"),
        ("lr: 0.1\nlr: 0.1\n", "lr is given more than once: 0.1 in line 1 and 0.1 in line 2"),
        ("layers: [a, b]\nlayers:\n  - c\n", "layers is given more than once: [a, b] in line 1 and - c in line 3"),
        ("{lr: 0.1, lr: 0.2}", "lr is given more than once: 0.1 in line 1 and 0.2 in line 1"),
    ],
)
def test_a_key_that_stands_twice_in_a_file_of_settings_is_an_error_that_shows_both(text, told, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_settings(tmp_path / "run.yaml")
    assert f"run.yaml: {told}; give it once." in str(error.value)


def test_a_key_that_stands_once_and_a_flag_that_wins_over_it_are_no_repetition(tmp_path):
    (tmp_path / "run.yaml").write_text("lr: 1e-3\nmean: [0.1, 0.1, 0.1]\n")
    assert read_settings(tmp_path / "run.yaml") == {"lr": 1e-3, "mean": [0.1, 0.1, 0.1]}


@pytest.mark.parametrize(
    ("words", "value"),
    [(["auto"], ("auto",)), (["1", "2.5", "3"], (1.0, 2.5, 3.0))],
)
def test_a_word_or_a_list_ends_where_the_next_flag_begins(words, value):
    _, arguments, _ = app.parse_args(["train", "--class-weights", *words, "--lr", "0.1"])
    assert arguments.kwargs == {"class_weights": value, "lr": 0.1}
    [setting] = {resolve_config({"class_weights": value}).class_weights}
    assert setting == (value if len(value) > 1 else "auto")
