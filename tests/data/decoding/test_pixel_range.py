"""Scans of 12 bits, 32-bit and floating-point images keep their grey levels, from the file to the evaluation."""

from __future__ import annotations

import logging
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from attention_transfer import ConfigError, DataError, load_model, train_at
from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.cli.app import main
from attention_transfer.cli.evaluate import open_split
from attention_transfer.cli.networks import open_network
from attention_transfer.cli.settings_file import read_settings
from attention_transfer.config import Config
from attention_transfer.data.decoding.decoder import Decoder
from attention_transfer.data.decoding.depth import FULL, natural_range, to_8_bit
from attention_transfer.data.decoding.images import decode_image
from attention_transfer.data.loading.loaders import prepare_dataloaders
from attention_transfer.distributed import Runtime
from attention_transfer.training.setup.loaders import Loaders, with_pixel_range

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def digits():
    """The first ten of the digits 0 to 3, smooth and 32 pixels wide: float64 in [0, 1] with thousands of levels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    enlarged = {}
    for label in range(4):
        few = torch.tensor(data.images[data.target == label][:10] / 16)[:, None]
        enlarged[label] = torch.nn.functional.interpolate(few, size=32, mode="bicubic")[:, 0].clamp(0, 1).numpy()
    return enlarged


@pytest.fixture
def write_folder(digits, tmp_path):
    """Writes class folders of scans: each image goes through `form`, and is saved with `extension`."""

    def write(form, extension="png", name="scans", splits=("",)):
        root = tmp_path / name
        for split in splits:
            for label, images in digits.items():
                folder = root / split / str(label)
                folder.mkdir(parents=True)
                for number, image in enumerate(images):
                    Image.fromarray(form(image)).save(folder / f"{number:02d}.{extension}")
        return root

    return write


def scan_of_12_bits(image):
    return (image * 4071).round().astype(np.uint16)


def tomogram(image):
    return (image * 4000 - 1000).round().astype(np.int32)


KINDS = {
    "12 bits in a 16-bit PNG": (scan_of_12_bits, "png", (0.0, 4095.0), "16-bit"),
    "16 bits": (lambda image: (image * 65535).astype(np.uint16), "tif", FULL, "16-bit"),
    "10 bits, big-endian": (lambda image: (image * 1023).astype(">u2"), "tif", (0.0, 1023.0), "16-bit"),
    "signed 16 bits": (tomogram, "tif", (-1024.0, 4095.0), "16-bit"),
    "32-bit integers": (lambda image: (image * 1_000_000).astype(np.int32), "tif", (0.0, 1048575.0), "32-bit"),
    "whole floats": (lambda image: scan_of_12_bits(image).astype(np.float32), "tif", (0.0, 4095.0), "floating-point"),
    "floats in [0, 1]": (lambda image: (image * 0.8).astype(np.float32), "tif", (0.0, 1.0), "floating-point"),
}


def levels(dataset):
    return max(len(np.unique(dataset.picture(index))) for index in range(0, len(dataset), 5))


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


def test_a_range_is_the_same_in_every_process_and_whatever_the_rank(write_folder):
    folder = write_folder(lambda image: (image * 3 - 1.4).astype(np.float32), "tif")
    here = prepare_dataloaders(folder, num_workers=0)[0].dataset.decoder.pixel_range
    there = prepare_dataloaders(folder, num_workers=0, rank=1, world_size=2)[0].dataset.decoder.pixel_range
    code = (
        "import sys; from attention_transfer.data import prepare_dataloaders\n"
        "print(prepare_dataloaders(sys.argv[1], num_workers=0, seed=7)[0].dataset.decoder.pixel_range)"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
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


def test_images_of_8_bits_keep_their_pixels_their_cache_and_the_setting(settings, few_digits):
    decoder = prepare_dataloaders(few_digits, num_workers=0, image_size=32)[0].dataset.decoder
    assert decoder == Decoder(32)
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


def test_an_image_alone_is_read_as_full_16_bits_with_a_warning_where_few_levels_remain(tmp_path, caplog, digits):
    Image.fromarray(scan_of_12_bits(digits[0][0])).save(tmp_path / "scan.png")
    assert np.asarray(decode_image(tmp_path / "scan.png")).max() == 16
    [record] = caplog.records
    assert "scan.png: few grey levels remain" in record.getMessage()
    assert "give pixel_range=(0, 4095)" in record.getMessage()
    caplog.clear()
    assert np.asarray(decode_image(tmp_path / "scan.png", (0.0, 4095.0))).max() > 240
    Image.fromarray((digits[0][0] * 65535).astype(np.uint16)).save(tmp_path / "full.png")
    decode_image(tmp_path / "full.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "empty.png")
    decode_image(tmp_path / "empty.png")
    assert not caplog.records


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


def test_full_range_16_bit_images_keep_the_pixels_that_they_had_before_there_was_a_range():
    values = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(to_8_bit(values, FULL), (values.astype(np.int64) * 255 + 32767) // 65535)


def test_the_ends_of_a_range_are_black_and_white_and_what_is_beyond_is_clipped():
    values = np.array([-9, 100, 101, 150, 200, 999])
    assert to_8_bit(values, (100.0, 200.0)).tolist() == [0, 0, 3, 128, 255, 255]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0, 255)),
        (0, 255, (0, 255)),
        (0, 256, (0, 1023)),
        (5, 1024, (0, 4095)),
        (0, 4096, (0, 16383)),
        (0, 16384, (0, 65535)),
        (0, 65536, (0, 131071)),
        (-1, 0, (-1, 255)),
        (-1024, 3071, (-1024, 4095)),
        (-32768, 32767, (-32768, 65535)),
    ],
)
def test_whole_numbers_have_the_range_of_their_bit_depth(low, high, expected):
    assert natural_range(low, high) == expected


def test_unsigned_32_bit_values_are_no_negative_numbers(tmp_path):
    values = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    Image.fromarray(values.view(np.int32)).save(tmp_path / "x.tif")
    content = (tmp_path / "x.tif").read_bytes()
    # the entry SampleFormat = 2 (signed) becomes 1, which Pillow would not write
    signed, unsigned = (struct.pack("<HHIHH", 339, 3, 1, kind, 0) for kind in (2, 1))
    assert content.count(signed) == 1
    (tmp_path / "x.tif").write_bytes(content.replace(signed, unsigned))
    with Image.open(tmp_path / "x.tif") as saved:
        assert saved.tag_v2[339] == (1,)
    pixels = np.asarray(decode_image(tmp_path / "x.tif", (0.0, 2.0**32 - 1)))
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


def png_of_16_bits(values, colour_type, orientation=None):
    """A PNG file with 16 bits a channel, which Pillow cannot write in colour."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation or 1
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
        + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def colours_of_12_bits(channels):
    return np.random.default_rng(0).integers(0, 4096, (16, 24, channels))


def test_colours_of_12_bits_in_a_16_bit_png_keep_their_levels_and_stand_upright(tmp_path, caplog):
    values = colours_of_12_bits(3)
    (tmp_path / "x.png").write_bytes(png_of_16_bits(values, 2, orientation=3))
    pixels = np.asarray(decode_image(tmp_path / "x.png", (0.0, 4095.0)))
    assert np.array_equal(pixels, to_8_bit(values, (0.0, 4095.0))[::-1, ::-1])
    assert not caplog.records
    assert np.asarray(decode_image(tmp_path / "x.png")).max() == 15
    assert "x.png: few grey levels remain" in caplog.text


@pytest.mark.parametrize(("colour_type", "channels"), [(4, 2), (6, 4)])
def test_transparent_pixels_of_16_bits_are_laid_on_white(tmp_path, colour_type, channels):
    values = colours_of_12_bits(channels)
    values[..., -1] = 65535
    values[0, 0, -1] = 0
    (tmp_path / "x.png").write_bytes(png_of_16_bits(values, colour_type))
    pixels = np.asarray(decode_image(tmp_path / "x.png", (0.0, 4095.0)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(pixels[1:], np.broadcast_to(to_8_bit(values[1:, :, :-1], (0.0, 4095.0)), (15, 24, 3)))


def test_auto_finds_the_range_of_colours_whatever_their_transparency(tmp_path):
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            values = colours_of_12_bits(4)
            values[..., -1] = 65535
            (tmp_path / "data" / label / f"{number}.png").write_bytes(png_of_16_bits(values, 6))
    dataset = prepare_dataloaders(tmp_path / "data", num_workers=0, image_size=16)[0].dataset
    assert dataset.decoder.pixel_range == (0.0, 4095.0)
    assert levels(dataset) > 100


def tiff_of_16_bits(values, order, deflated):
    """An RGB TIFF file with 16 bits a channel, which Pillow cannot write."""
    height, width, channels = values.shape
    content = values.astype(f"{order}u2").tobytes()
    content = zlib.compress(content) if deflated else content
    tags = {256: (4, width), 257: (4, height), 259: (3, 8 if deflated else 1), 262: (3, 2), 277: (3, channels)}
    behind = 8 + 2 + 12 * (len(tags) + 4) + 4
    tags |= {273: (4, behind + 2 * channels), 278: (4, height), 279: (4, len(content))}
    entries = {key: (kind, 1, value) for key, (kind, value) in tags.items()} | {258: (3, channels, None)}
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    for key, (kind, count, value) in sorted(entries.items()):
        packed = struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else None
        head += struct.pack(f"{order}HHI", key, kind, count)
        head += packed or struct.pack(f"{order}I", behind if value is None else value)
    return head + struct.pack(f"{order}I{channels}H", 0, *[16] * channels) + content


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflated", [False, True])
def test_colours_of_12_bits_in_a_16_bit_tiff_keep_their_levels(tmp_path, order, deflated):
    values = colours_of_12_bits(3)
    (tmp_path / "x.tif").write_bytes(tiff_of_16_bits(values, order, deflated))
    pixels = np.asarray(decode_image(tmp_path / "x.tif", (0.0, 4095.0)))
    assert np.array_equal(pixels, to_8_bit(values, (0.0, 4095.0)))


def test_colours_of_16_bits_that_only_their_upper_half_can_be_read_of_are_refused_in_another_range(tmp_path):
    values = colours_of_12_bits(3)
    (tmp_path / "x.ppm").write_bytes(b"P6 24 16 65535\n" + values.astype(">u2").tobytes())
    with pytest.raises(DataError, match=r"x\.ppm has colours of 16 bits.*save it as PNG"):
        decode_image(tmp_path / "x.ppm", (0.0, 4095.0))
    (tmp_path / "x.ppm").write_bytes(b"P6 24 16 65535\n" + (values * 16).astype(">u2").tobytes())
    assert np.asarray(decode_image(tmp_path / "x.ppm", FULL)).max() > 250


def test_a_portable_pixmap_that_tells_its_greatest_value_has_its_own_range(tmp_path):
    content = b"P5 2 1 4095\n" + np.array([0, 4095], dtype=">u2").tobytes()
    (tmp_path / "x.pgm").write_bytes(content)
    for pixel_range in (None, (0.0, 4095.0), (0.0, 1.0)):
        assert np.asarray(decode_image(tmp_path / "x.pgm", pixel_range))[0, :, 0].tolist() == [0, 255]


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
