"""A range is a setting like others: kept in checkpoints, of earlier versions too, for evaluation, and in caches."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image
from support.images.scans import KINDS, levels, scan_of_12_bits

from attention_transfer import ConfigError, DataError, load_model, train_at
from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.cli.app import main
from attention_transfer.cli.commands.evaluate import open_split
from attention_transfer.cli.networks import open_network
from attention_transfer.cli.settings_file import read_settings
from attention_transfer.data.decoding.decoder import Decoder
from attention_transfer.data.decoding.depth import FULL
from attention_transfer.data.frame import Frame
from attention_transfer.data.loading.loaders import prepare_dataloaders

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(settings):
    """At the size of the images, so that their brightest pixels stay as they are."""
    return {**settings, "image_size": 32}


@pytest.mark.parametrize("kind", ["12 bits in a 16-bit PNG", "32-bit integers", "floats in [0, 1]"])
def test_levels_are_kept_from_training_to_evaluation(write_folder, settings, tmp_path, kind):
    form, extension, expected, _ = KINDS[kind]
    folder = write_folder(form, extension)
    results = train_at({**settings, "data_dir": str(folder), "model": "CifarResNet-8"})
    assert results["config"]["pixel_range"] == expected
    best = str(tmp_path / "checkpoints" / "run_best.pth")
    assert load_model(best, "cpu")["config"]["pixel_range"] == expected
    log = (tmp_path / "logs" / "run.log").read_text()
    assert log.count("images: pixel_range (0, ") == 1
    _, config = open_network(best, {"device": "cpu"})
    dataset = open_split(config, "test").dataset
    assert dataset.decoder.pixel_range == expected
    assert levels(dataset) > 100


def test_evaluate_reads_darker_images_with_the_range_of_the_training(write_folder, settings, tmp_path):
    folder = write_folder(scan_of_12_bits)
    darker = write_folder(lambda image: (image * 500).astype(np.uint16), name="darker")
    train_at({**settings, "data_dir": str(folder), "model": "CifarResNet-8"})
    best = str(tmp_path / "checkpoints" / "run_best.pth")
    _, config = open_network(best, {"device": "cpu", "data_dir": str(darker)})
    dataset = open_split(config, "test").dataset
    assert dataset.picture(0).max() == round(500 / 4095 * 255)
    _, config = open_network(best, {"device": "cpu", "data_dir": str(darker), "pixel_range": "auto"})
    assert open_split(config, "test").dataset.decoder.pixel_range == (0.0, 1023.0)


def test_evaluate_says_what_auto_has_found(write_folder, settings, tmp_path, capsys):
    folder = write_folder(scan_of_12_bits)
    train_at({**settings, "data_dir": str(folder), "model": "CifarResNet-8"})
    best = str(tmp_path / "checkpoints" / "run_best.pth")
    for flags, said in (([], 0), (["--pixel-range", "auto"], 1), (["--pixel-range", "0", "65535"], 0)):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["evaluate", best, "--device", "cpu", "--num-workers", "0", *flags])
        assert end.value.code == 0
        assert capsys.readouterr().out.count("--pixel-range (0, 4095), as found") == said


def test_visualize_reads_files_with_the_range_of_the_checkpoint(write_folder, settings, tmp_path):
    folder = write_folder(scan_of_12_bits)
    train_at({**settings, "data_dir": str(folder), "model": "CifarResNet-8"})
    best = str(tmp_path / "checkpoints" / "run_best.pth")

    def figure(*flags):
        target = tmp_path / "figure.png"
        with pytest.raises(SystemExit) as end:
            main(["visualize", best, str(folder / "0" / "00.png"), "--device", "cpu", "--output", str(target), *flags])
        assert end.value.code == 0
        return np.asarray(Image.open(target))

    of_checkpoint = figure()
    assert np.array_equal(of_checkpoint, figure("--pixel-range", "0", "4095"))
    assert not np.array_equal(of_checkpoint, figure("--pixel-range", "0", "65535"))


def test_images_of_8_bits_keep_their_pixels_their_cache_and_the_setting(settings, few_digits):
    decoder = prepare_dataloaders(few_digits, num_workers=0, image_size=32)[0].dataset.decoder
    assert decoder == Decoder(decoder.frame)
    assert decoder.frame == Frame(32, 32)
    assert decoder.identity() == Decoder(32).identity()
    # as it was before there was a range: the pixels that are kept today are found tomorrow
    assert set(decoder.identity()) == {"size", "shorter side", "filter", "pillow"}
    path = few_digits / "3" / sorted(file.name for file in (few_digits / "3").iterdir())[0]
    assert np.array_equal(Decoder(32)(path), Decoder(32, pixel_range=(0.0, 4095.0))(path))
    results = train_at({**settings, "model": "CifarResNet-8"})
    assert results["config"]["pixel_range"] == "auto"


def test_a_range_is_part_of_what_kept_pixels_are_known_by_unless_it_is_the_full_one():
    assert Decoder(32).identity() == Decoder(32, pixel_range=FULL).identity()
    assert Decoder(32).identity() != Decoder(32, pixel_range=(0.0, 4095.0)).identity()
    assert Decoder(32, pixel_range=(0.0, 1023.0)).identity() != Decoder(32, pixel_range=(0.0, 4095.0)).identity()


def test_runs_with_different_ranges_share_no_pixels(write_folder, settings, tmp_path):
    folder = write_folder(scan_of_12_bits)
    common = {**settings, "data_dir": str(folder), "model": "CifarResNet-8", "pixel_cache": "on", "overwrite": True}
    losses = {}
    for pixel_range in ("auto", (0, 65535), (0, 4095)):
        results = train_at({**common, "pixel_range": pixel_range, "cache_dir": str(tmp_path / "cache")})
        losses[pixel_range] = results["training_history"][0]["train_loss"]
    assert losses["auto"] == losses[(0, 4095)] != losses[(0, 65535)]


def without_the_setting(path):
    """Write a checkpoint as it was before there was pixel_range."""
    content = read_checkpoint(path)
    del content["config"]["pixel_range"]
    write_checkpoint(path, {key: value for key, value in content.items() if key not in ("format", "version")})


def test_a_checkpoint_from_before_the_setting_reads_16_bits_as_it_was_trained(write_folder, settings, tmp_path):
    folder = write_folder(scan_of_12_bits)
    config = {**settings, "data_dir": str(folder), "model": "CifarResNet-8", "pixel_range": (0, 65535), "epochs": 2}
    whole = train_at(config)
    train_at({**config, "epochs": 1, "experiment_name": "old"})
    last = tmp_path / "checkpoints" / "old_last.pth"
    without_the_setting(last)
    assert load_model(last, "cpu")["config"]["pixel_range"] == FULL
    _, opened = open_network(str(last), {"device": "cpu"})
    assert open_split(opened, "test").dataset.picture(0).max() == 16
    del config["pixel_range"]
    resumed = train_at({**config, "experiment_name": "old", "resume": str(last)})
    assert resumed["config"]["pixel_range"] == FULL
    assert resumed["training_history"][1]["train_loss"] == whole["training_history"][1]["train_loss"]


def test_an_8_bit_run_from_before_the_setting_goes_on_with_its_caches(settings, tmp_path):
    config = {**settings, "model": "CifarResNet-8", "pixel_cache": "on", "cache_dir": str(tmp_path / "cache")}
    train_at(config)
    kept = sorted((tmp_path / "cache").iterdir())
    last = tmp_path / "checkpoints" / "run_last.pth"
    without_the_setting(last)
    train_at({**config, "epochs": 2, "resume": str(last)})
    assert sorted((tmp_path / "cache").iterdir()) == kept


def test_a_run_goes_on_with_the_range_that_it_has(write_folder, settings, tmp_path):
    folder = write_folder(scan_of_12_bits)
    config = {**settings, "data_dir": str(folder), "model": "CifarResNet-8"}
    train_at(config)
    last = str(tmp_path / "checkpoints" / "run_last.pth")
    with pytest.raises(ConfigError, match=r"pixel_range is \(0\.0, 65535\.0\), but .*trained with \(0\.0, 4095\.0\)"):
        train_at({**config, "epochs": 2, "resume": last, "pixel_range": (0, 65535)})
    assert train_at({**config, "epochs": 2, "resume": last})["config"]["pixel_range"] == (0.0, 4095.0)


@pytest.mark.parametrize("pixel_range", ["full", (4095, 0), (1, 1), (0, float("nan")), (0,), None, (True, 2)])
def test_a_range_that_is_none_is_refused(image_folder, pixel_range):
    with pytest.raises(DataError, match=r"pixel_range is .*; it must be 'auto', or a lower and a higher number"):
        prepare_dataloaders(image_folder({"a": 3, "b": 3}), num_workers=0, pixel_range=pixel_range)


@pytest.mark.parametrize(
    ("flags", "given"), [(["auto"], "auto"), (["0", "4095"], (0.0, 4095.0)), (["-1024", "3071.5"], (-1024.0, 3071.5))]
)
def test_the_flag_takes_auto_or_two_numbers(write_folder, tmp_path, monkeypatch, flags, given):
    taken = []
    monkeypatch.setattr(
        "attention_transfer.training.train.train_at", lambda config: taken.append(config) or sys.exit(0)
    )
    with pytest.raises(SystemExit):
        main(["train", "--data-dir", str(tmp_path), "--pixel-range", *flags, "--epochs", "3"])
    assert (taken[0].pixel_range, taken[0].epochs) == (given, 3)


@pytest.mark.parametrize(("text", "given"), [("auto", "auto"), ("[0, 4095]", [0, 4095])])
def test_a_settings_file_takes_auto_or_two_numbers(tmp_path, text, given):
    (tmp_path / "run.yaml").write_text(f"pixel_range: {text}\n")
    assert read_settings(tmp_path / "run.yaml") == {"pixel_range": given}
