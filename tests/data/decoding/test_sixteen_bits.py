"""How pixels of 16 and 32 bits become 8, in a range, in each file format that has them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.images.scans import levels, scan_of_12_bits

from attention_transfer import DataError
from attention_transfer.data.decoding.depth import FULL, natural_range, to_8_bit
from attention_transfer.data.decoding.images import decode_image
from attention_transfer.data.loading.loaders import prepare_dataloaders

ORIENTATION = 0x0112


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
