"""The command line as a person uses it: every command in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from support import warm
from support.programs import BEFORE_IT_HANGS

from attention_transfer import create_model
from attention_transfer.cli.commands.visualize import find_images
from attention_transfer.cli.flags import describe
from attention_transfer.cli.settings_file import read_settings
from attention_transfer.cli.tables import facts, millions, table
from attention_transfer.config import GROUPS, Config, resolve_config
from attention_transfer.errors import ConfigError, DataError

COMMAND = [sys.executable, "-m", "attention_transfer"]
SMALL = ["--model", "CifarResNet-8", "--image-size", "16", "--num-workers", "0", "--device", "cpu", "--lr", "0.05"]
SMALL += ["--precision", "fp32", "--figure-freq", "0"]


def call(*words, folder=None, code=0):
    """The output of a command that must end with `code`, and what it wrote to standard error."""
    done = warm.run("-m", "attention_transfer", *words, cwd=folder, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def in_process(*words):
    """The exit code of a command that is run here, which spares the seconds of importing torch."""
    from attention_transfer.cli.app import main

    with pytest.raises(SystemExit) as ending:
        main([str(word) for word in words])
    return ending.value.code


@pytest.fixture(scope="module")
def trained(few_digits, tmp_path_factory):
    """A folder in which `train` has run for an epoch, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    printed, _ = call(
        "train", "--data-dir", few_digits, *SMALL, "--epochs", 1, "--experiment-name", "small", folder=folder
    )
    return folder, printed


def test_train_ends_with_what_came_out_and_where_it_is(trained):
    folder, printed = trained
    ending = printed[printed.index("small: finished") :]
    assert re.search(r"best accuracy +\d+\.\d\d % \(validation\)", ending)
    assert re.search(r"test accuracy +\d+\.\d\d % on 20 images", ending)
    assert re.search(r"epochs +1 of 1", ending)
    assert "tensorboard --logdir logs" in ending
    for file in ("checkpoints/small_best.pth", "checkpoints/small_final.pth", "logs/small.log"):
        assert file in ending
        assert (folder / file).exists()
    assert "\033" not in printed


def test_evaluate_takes_data_and_their_form_from_the_checkpoint(trained):
    folder, _ = trained
    printed, _ = call("evaluate", "checkpoints/small_best.pth", "--json", "out/figures.json", folder=folder)
    report = json.loads((folder / "out" / "figures.json").read_text())
    assert report["samples"] == 20
    assert f"accuracy              {100 * report['accuracy']:.2f} %" in printed
    for word in ("top-5 accuracy", "calibration error", "parameters", "multiply-adds", "precision", "recall", "F1"):
        assert word in printed
    assert len(re.findall(r"^ +\d +[\d.]+ % ", printed, flags=re.MULTILINE)) == 10
    summary = json.loads((folder / "logs" / "small_summary.json").read_text())
    assert summary["test_results"]["accuracy"] == report["accuracy"]


def test_evaluate_takes_another_split(trained, few_digits, capsys):
    checkpoint = trained[0] / "checkpoints" / "small_best.pth"
    assert in_process("evaluate", checkpoint, "--split", "train", "--batch-size", 7) == 0
    assert f"on the train split, 80 images of {few_digits}" in capsys.readouterr().out


def test_evaluate_takes_bare_weights(few_digits, tmp_path, capsys):
    torch.save(create_model("CifarResNet-8", 10).state_dict(), tmp_path / "bare.pth")
    settings = ["--data-dir", few_digits, "--image-size", 16, "--num-workers", 0]
    assert in_process("evaluate", tmp_path / "bare.pth", *settings) == 0
    assert f"on all 120 images of {few_digits}" in capsys.readouterr().out


def test_evaluate_refuses_data_of_another_number_of_classes(few_digits, tmp_path, capsys):
    torch.save(create_model("CifarResNet-8", 7).state_dict(), tmp_path / "seven.pth")
    assert in_process("evaluate", tmp_path / "seven.pth", "--data-dir", few_digits, "--num-workers", 0) == 2
    assert "tells 7 classes apart, but the data set 10 (0, 1, 2" in capsys.readouterr().err


def test_visualize_draws_files_and_folders_beside_a_teacher(trained, few_digits):
    folder, _ = trained
    torch.save(create_model("CifarResNet-14", 10).state_dict(), folder / "teacher.pth")
    one = next((few_digits / "3").iterdir())
    printed, _ = call(
        *("visualize", "checkpoints/small_best.pth", one, few_digits / "7", "--teacher", "teacher.pth"),
        *("--output", "figures/where.png", "--device", "cpu"),
        folder=folder,
    )
    assert "in 5 images" in printed
    with Image.open(folder / "figures" / "where.png") as figure:
        assert figure.format == "PNG"
        assert min(figure.size) > 300


def test_images_of_a_folder_lie_evenly_in_it(digits_folder):
    found = find_images((str(digits_folder),))
    assert [file.parent.name for file in found] == ["0", "2", "4", "7"]


def test_visualize_names_the_path_that_is_not_there(trained, capsys, tmp_path):
    with pytest.raises(DataError, match="no image to draw"):
        find_images(())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        find_images((str(tmp_path / "empty"),))
    checkpoint = trained[0] / "checkpoints" / "small_best.pth"
    assert in_process("visualize", checkpoint, "nowhere.png") == 2
    assert "nowhere.png is neither" in capsys.readouterr().err


def test_info_tells_versions_machine_and_networks(capsys):
    assert in_process("info") == 0
    printed = capsys.readouterr().out
    assert f"torch               {torch.__version__.split('+')[0]}" in printed
    assert "device auto" in printed
    for name in ("MultiBranchNet", "ResNet18", "CifarResNet-20", "WideResNet-16-2"):
        assert re.search(rf"{name} +[\d.]+ M +[\d.]+ M +\w+ \w+", printed)


def test_info_tells_what_a_checkpoint_holds(trained, tmp_path, capsys):
    assert in_process("info", trained[0] / "checkpoints" / "small_best.pth") == 0
    printed = capsys.readouterr().out
    assert re.search(r"network +CifarResNet-8", printed)
    assert re.search(r"epochs +1 of 1", printed)
    changed = printed[printed.index("differ from the defaults") :]
    assert re.search(r"lr +0.05", changed)
    assert "momentum" not in changed

    torch.save(create_model("CifarResNet-8", 10).state_dict(), tmp_path / "bare.pth")
    assert in_process("info", tmp_path / "bare.pth") == 0
    assert "bare weights" in capsys.readouterr().out


@pytest.mark.slow
def test_flags_win_over_the_file_and_the_file_over_the_defaults(few_digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        f"data_dir: {few_digits}\nmodel: CifarResNet-8\nimage_size: 32\nnum_workers: 0\nepochs: 7\nlr: 1e-3\n"
        "mean: [0.5, 0.5, 0.5]\nexperiment_name: file\n"
    )
    flags = ["--epochs", 1, "--augment", "--no-flip", "--std", 0.5, 0.25, 0.5, "--layers", "layer1", "layer3"]
    assert in_process("train", "--config", "run.yaml", *flags, "--crop-scale", 0.8, 1) == 0
    config = json.loads((tmp_path / "logs" / "file_summary.json").read_text())["config"]
    assert (config["epochs"], config["lr"], config["batch_size"]) == (1, 0.001, 32)
    assert (config["augment"], config["flip"]) == (True, False)
    assert (config["mean"], config["std"]) == ([0.5, 0.5, 0.5], [0.5, 0.25, 0.5])
    assert (config["layers"], config["crop_scale"]) == (["layer1", "layer3"], [0.8, 1])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epoch: 3", "run.yaml: 'epoch' is not a setting. Did you mean 'epochs'"),
        ("lr: fast", "run.yaml: lr is 'fast'"),
        ("- lr", "run.yaml must hold lines such as 'epochs: 30', but holds a list"),
        ("lr: [", "run.yaml is not YAML"),
        ("lr: !!python/object:os.system {}", "run.yaml is not YAML"),
        (None, "run.yaml cannot be read"),
    ],
)
def test_a_wrong_file_of_settings_is_named(text, told, tmp_path):
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_settings(tmp_path / "run.yaml")
    assert told in str(error.value)


def test_an_empty_file_of_settings_changes_nothing(tmp_path):
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert read_settings(tmp_path / "run.yaml") == {}


def test_an_error_is_a_sentence_and_ends_with_2(tmp_path, capsys):
    words = ["train", "--momentum", "1"]
    done = subprocess.run([*COMMAND, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: momentum is 1.0: it should be less than 1 (allowed: number, at least 0, below 1).\n"

    assert in_process("train", "--data-dir", tmp_path / "nowhere") == 2
    assert "nowhere does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--debug", "train", "--lr", "0"], ["train", "--lr", "0", "--debug"]])
def test_debug_shows_where_an_error_comes_from(words, capsys):
    assert in_process(*words) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "lr is 0.0" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--epoch", "3"], "--epochs"),
        (["train", "--epochs", "many"], "many"),
        (["trian"], "train"),
        (["evaluate"], "CHECKPOINT"),
    ],
)
def test_a_wrong_flag_is_told_and_ends_with_2(words, told, capsys):
    assert in_process(*words) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert not captured.out


@pytest.mark.slow
@pytest.mark.speed
def test_ctrl_c_tells_how_to_go_on_and_going_on_works(few_digits, tmp_path):
    words = ["train", "--data-dir", few_digits, *SMALL, "--epochs", "5000", "--experiment-name", "long"]
    process = warm.Program("-m", "attention_transfer", *words, cwd=tmp_path)
    last = tmp_path / "checkpoints" / "long_last.pth"
    while not last.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, told = process.communicate(timeout=BEFORE_IT_HANGS)
    assert process.returncode == 130, printed + told
    assert "long: stopped" in printed
    assert "attention-transfer train --resume checkpoints/long_last.pth" in printed
    assert "Traceback" not in told

    done = torch.load(last, weights_only=True)["epoch"]
    printed, _ = call("train", "--resume", "checkpoints/long_last.pth", "--epochs", done + 1, folder=tmp_path)
    assert f"{done + 1} of {done + 1}" in printed


@pytest.mark.parametrize("words", ["--help", "train --help", "evaluate --help", "demo --help", "train --lr 0"])
def test_torch_stays_out_until_a_command_runs(words):
    code = (
        "import sys\nfrom attention_transfer.cli.app import main\n"
        f"try:\n    main({words.split()!r})\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'torchvision', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_help_of_train_has_every_setting_under_its_heading(capsys, monkeypatch):
    from rich.console import Console

    from attention_transfer.cli.app import app

    # so wide that no text is broken by the column beside it; the app keeps the width of what it first printed
    monkeypatch.setattr(app, "console", Console(width=400))
    assert in_process("train", "--help") == 0
    printed = capsys.readouterr().out
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", printed).split())
    for key in Config.model_fields:
        assert f"--{key.replace('_', '-')}" in words
        assert describe(key) in words
    positions = [printed.index(group.heading) for group in GROUPS]
    assert positions == sorted(positions)


def test_version_is_told(capsys):
    from attention_transfer import __version__

    assert in_process("--version") == 0
    assert capsys.readouterr().out.strip() == __version__


def test_settings_on_the_command_line_are_of_the_types_of_config():
    """A flag of each kind of type goes through the parser as it would into create_at_config."""
    from attention_transfer.cli.app import app

    words = "train --epochs 3 --lr 1e-3 --precision bf16 --layers layer2 layer3:stage3 --mean 0 0 0 --overwrite"
    _, arguments, _ = app.parse_args(words.split())
    config = resolve_config(arguments.kwargs)
    assert (config.epochs, config.lr, config.precision) == (3, 0.001, "bf16")
    assert (config.layers, config.mean, config.overwrite) == (("layer2", "layer3:stage3"), (0, 0, 0), True)


def test_tables_align_numbers_to_the_right(capsys):
    table(["class", "images"], [["ant", "9"], ["bee", "12"]])
    facts("run", {"epochs": 10, "accuracy": "97 %"})
    assert capsys.readouterr().out.splitlines() == [
        "  class  images",
        "  ant         9",
        "  bee        12",
        "run",
        "  epochs    10",
        "  accuracy  97 %",
    ]
    assert [millions(count) for count in (268_000, 1_474_902, 592_000_000)] == ["0.27 M", "1.47 M", "592 M"]


def test_a_damaged_image_is_one_sentence_also_out_of_a_worker(image_folder):
    root = image_folder({"ant": 8, "bee": 8})
    for file in (root / "ant").iterdir():
        file.write_bytes(file.read_bytes()[:40])
    small = ["--model", "CifarResNet-8", "--image-size", "16", "--num-workers", "1"]
    words = ["train", *small, "--epochs", 1, "--data-dir", root]
    _, told = call(*words, folder=root.parent, code=2)
    error = [line for line in told.splitlines() if "error: " in line]
    assert len(error) == 1
    assert ".png" in error[0]
    assert "Traceback" not in told


def test_a_folder_that_cannot_be_written_is_a_sentence(few_digits, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert in_process("train", *SMALL, "--epochs", 1, "--data-dir", few_digits, "--log-dir", tmp_path / "file") == 2
    told = capsys.readouterr().err
    assert "error: " in told
    assert str(tmp_path / "file") in told
    assert "Traceback" not in told
