"""The range that pixel_range='auto' finds on the training images, and what is said where a range does not fit."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from support import warm
from support.images.scans import KINDS, levels, scan_of_12_bits

from attention_transfer import DataError, train_at
from attention_transfer.config import Config
from attention_transfer.data.decoding.depth import FULL
from attention_transfer.data.decoding.images import decode_image
from attention_transfer.data.loading.loaders import prepare_dataloaders
from attention_transfer.distributed import Runtime
from attention_transfer.training.setup.data.loaders import Loaders, with_pixel_range


@pytest.mark.parametrize("kind", KINDS)
def test_auto_finds_the_range_that_the_images_were_made_for_and_says_it(write_folder, caplog, kind):
    form, extension, expected, name = KINDS[kind]
    folder = write_folder(form, extension)
    with caplog.at_level(logging.INFO, "attention_transfer"):
        loaders = prepare_dataloaders(folder, num_workers=0, image_size=32)
    assert [loader.dataset.decoder.pixel_range for loader in loaders] == [expected] * 3
    assert levels(loaders[0].dataset) > 100
    assert (
        f"{name} images: pixel_range ({expected[0]:.10g}, {expected[1]:.10g}), found on 24 of 24 files" in caplog.text
    )
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_floats_beyond_1_have_the_range_of_the_sampled_training_images(write_folder):
    folder = write_folder(lambda image: (image * 3 - 1.5).astype(np.float32), "tif")
    assert prepare_dataloaders(folder, num_workers=0)[0].dataset.decoder.pixel_range == (-1.5, 1.5)


def test_the_training_images_alone_decide_and_what_is_clipped_elsewhere_is_said(write_folder, caplog):
    folder = write_folder(scan_of_12_bits, splits=("train", "val", "test"))
    bright = folder / "val" / "3" / "00.png"
    Image.fromarray(np.full((32, 32), 10_000, np.uint16)).save(bright)
    loaders = prepare_dataloaders(folder, num_workers=0)
    assert {loader.dataset.decoder.pixel_range for loader in loaders} == {(0.0, 4095.0)}
    clipped = [record.getMessage() for record in caplog.records if "clipped" in record.getMessage()]
    assert len(clipped) == 1
    assert f"pixel_range (0, 4095) are clipped, as in {bright} (values 10,000 to 10,000)" in clipped[0]


@pytest.mark.parametrize("pixel_cache", ["off", "on"])
def test_clipping_of_files_that_were_not_sampled_is_said_once(write_folder, settings, tmp_path, pixel_cache):
    folder = write_folder(scan_of_12_bits, splits=("train", "val", "test"))
    train_samples = prepare_dataloaders(folder, num_workers=0)[0].dataset.source.samples
    # 40 training images: a given range is tried out on 8 of them, from the first on each fifth
    for sample in train_samples[1:4]:
        Image.fromarray(np.full((32, 32), 10_000, np.uint16)).save(sample.path)
    changes = {"data_dir": str(folder), "pixel_range": (0, 4095), "pixel_cache": pixel_cache, "epochs": 2}
    train_at({**settings, **changes, "model": "CifarResNet-8", "cache_dir": str(tmp_path / "cache")})
    assert (tmp_path / "logs" / "run.log").read_text().count("are clipped, as in") == 1


def test_clipping_in_the_workers_that_fill_the_store_is_said(write_folder, settings, tmp_path):
    folder = write_folder(scan_of_12_bits, splits=("train", "val", "test"))
    changes = {"data_dir": str(folder), "pixel_range": (0, 4095), "pixel_cache": "on", "num_workers": 1}
    samples = prepare_dataloaders(folder, num_workers=0)[0].dataset.source.samples
    Image.fromarray(np.full((32, 32), 10_000, np.uint16)).save(samples[1].path)
    train_at({**settings, **changes, "model": "CifarResNet-8", "cache_dir": str(tmp_path / "cache")})
    assert (tmp_path / "logs" / "run.log").read_text().count("are clipped, as in") == 1


@pytest.mark.slow
def test_a_range_is_the_same_in_every_process_and_whatever_the_rank(write_folder):
    folder = write_folder(lambda image: (image * 3 - 1.4).astype(np.float32), "tif")
    here = prepare_dataloaders(folder, num_workers=0)[0].dataset.decoder.pixel_range
    there = prepare_dataloaders(folder, num_workers=0, rank=1, world_size=2)[0].dataset.decoder.pixel_range
    code = (
        "import sys; from attention_transfer.data import prepare_dataloaders\n"
        "print(prepare_dataloaders(sys.argv[1], num_workers=0, seed=7)[0].dataset.decoder.pixel_range)"
    )
    elsewhere = warm.run("-c", code, folder)
    assert here == there
    assert elsewhere.stdout.strip() == str(here)


class Disagreeing(Runtime):
    """The second process of a run finds another range, as it would on a folder with other files."""

    def all_gather_object(self, value):
        return [value, (0.0, 1023.0)]


def test_processes_that_find_different_ranges_are_an_error(write_folder):
    loaders = prepare_dataloaders(write_folder(scan_of_12_bits), num_workers=0)
    with pytest.raises(DataError, match=r"\(0\.0, 1023\.0\) and \(0\.0, 4095\.0\) in processes of one run"):
        with_pixel_range(Config(), Loaders(*loaders, own=list(loaders)), Disagreeing(torch.device("cpu")))


def test_files_that_cannot_have_more_than_8_bits_are_not_opened(image_folder, monkeypatch):
    folder = image_folder({"a": 4, "b": 4})
    for path in folder.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    monkeypatch.setattr(Image, "open", lambda path: pytest.fail(f"{path} was opened"))
    prepare_dataloaders(folder, num_workers=0)


def test_of_many_files_a_bounded_number_is_opened(image_folder, monkeypatch):
    folder, opened, really_open = image_folder({"a": 300, "b": 300}), [], Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or really_open(path))
    prepare_dataloaders(folder, num_workers=0)
    assert len(opened) == 256
    assert {path.split("/")[-2] for path in opened} == {"a", "b"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_no_number_is_an_error_that_names_the_file(write_folder, value):
    folder = write_folder(lambda image: image.astype(np.float32), "tif")
    path = sorted(folder.rglob("*.tif"))[-1]
    bad = np.zeros((32, 32), np.float32)
    bad[3, 4] = value
    for file in sorted((folder / "2").iterdir()):
        Image.fromarray(bad).save(file)
    with pytest.raises(DataError, match=r"2/\d+\.tif has pixels that are NaN or infinite; replace them"):
        prepare_dataloaders(folder, num_workers=0)
    Image.fromarray(bad).save(path)
    with pytest.raises(DataError, match=f"{path} has pixels that are NaN or infinite"):
        decode_image(path, (0.0, 1.0))


def test_floats_and_integers_have_no_range_in_common(write_folder):
    folder = write_folder(lambda image: image.astype(np.float32), "tif", splits=("train", "val", "test"))
    other = folder / "train" / "1" / "00.tif"
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(other)
    with pytest.raises(DataError, match=rf"0/00\.tif has floating-point pixels .*{other} integers .*set pixel_range"):
        prepare_dataloaders(folder, num_workers=0)
    assert prepare_dataloaders(folder, num_workers=0, pixel_range=(0, 1))[0].dataset.decoder.pixel_range == (0.0, 1.0)


def test_floats_of_a_single_value_tell_no_range(write_folder):
    folder = write_folder(lambda image: np.full((8, 8), 7.5, np.float32), "tif")
    with pytest.raises(DataError, match=r"are 7\.5, which tells no range; set pixel_range"):
        prepare_dataloaders(folder, num_workers=0)


def test_scans_of_12_bits_among_images_of_16_are_said_with_a_file_of_each(write_folder, caplog):
    folder = write_folder(scan_of_12_bits, splits=("train", "val", "test"))
    full = folder / "train" / "1" / "00.png"
    Image.fromarray(np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)).save(full)
    prepare_dataloaders(folder, num_workers=0)
    [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "with pixel_range (0, 65535) few grey levels remain in 39 of 40 sampled files" in said
    assert f"others have more, as {full} (values 0 to 65,535)" in said
    assert "as in pixel_range=(0, 4095)" in said


def test_a_range_that_leaves_few_levels_is_a_warning_with_the_likely_one(write_folder, caplog):
    prepare_dataloaders(write_folder(scan_of_12_bits), num_workers=0, pixel_range=FULL)
    [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "with pixel_range (0, 65535) few grey levels remain in 8 of 8 sampled files" in said
    assert "set pixel_range, as in pixel_range=(0, 4095)" in said
