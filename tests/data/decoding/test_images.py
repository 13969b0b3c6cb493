"""From a file of any kind to RGB and to a tensor."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from support import warm

from attention_transfer.data.decoding.decoder import Decoder
from attention_transfer.data.decoding.images import decode_image, resize_whole, to_tensor
from attention_transfer.data.views import Augmentation
from attention_transfer.errors import DataError

ORIENTATION = 0x0112
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def decoded(image, path, **options):
    image.save(path, **options)
    result = decode_image(path)
    assert result.mode == "RGB"
    return np.asarray(result)


def two_by_three():
    """Six different colours, so that every orientation looks different."""
    return Image.fromarray(np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_an_image_is_turned_upright_by_its_exif_orientation(tmp_path, orientation, extension):
    upright = np.asarray(two_by_three())
    # what the camera stored: the inverse of what a viewer has to do
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels = decoded(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / f"x.{extension}", exif=exif)
    assert np.array_equal(pixels, upright)


def test_a_camera_jpeg_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = Image.new("RGB", (64, 32), RED)
    stored.paste(BLUE, (32, 0, 64, 32))
    pixels = decoded(stored, tmp_path / "x.jpg", exif=exif, quality=95, subsampling=0)
    assert pixels.shape == (64, 32, 3)
    assert np.abs(pixels[4, 4].astype(int) - RED).max() < 8
    assert np.abs(pixels[60, 4].astype(int) - BLUE).max() < 8


def test_a_file_with_damaged_exif_data_keeps_its_pixels(tmp_path):
    pixels = decoded(Image.new("RGB", (8, 8), WHITE), tmp_path / "x.jpg", exif=b"Exif\0\0garbage")
    assert (pixels == 255).all()


def test_a_grey_image_becomes_three_equal_channels(tmp_path):
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    pixels = decoded(Image.fromarray(grey), tmp_path / "x.png")
    assert np.array_equal(pixels, np.repeat(grey[..., None], 3, axis=2))


def test_a_black_and_white_image_becomes_0_and_255(tmp_path):
    bits = Image.fromarray(np.eye(4, dtype=bool))
    assert np.array_equal(decoded(bits, tmp_path / "x.png")[..., 1], np.eye(4) * 255)


def test_a_palette_image_gets_the_colours_of_its_palette(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    assert decoded(image, tmp_path / "x.png").tolist() == [[[*RED], [*GREEN]]]


def test_a_transparent_entry_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    assert decoded(image, tmp_path / "x.png", transparency=0).tolist() == [[[*WHITE], [*GREEN]]]


def test_a_transparent_colour_of_an_rgb_png_becomes_white(tmp_path):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    assert decoded(image, tmp_path / "x.png", transparency=RED).tolist() == [[[*WHITE], [*GREEN]]]


def test_rgba_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (*RED, 255))
    image.putpixel((1, 0), (*RED, 0))
    image.putpixel((2, 0), (*RED, 102))
    assert decoded(image, tmp_path / "x.png").tolist() == [[[*RED], [*WHITE], [255, 153, 153]]]


def test_grey_with_alpha_is_laid_on_white(tmp_path):
    image = Image.new("LA", (2, 1), (0, 255))
    image.putpixel((1, 0), (0, 0))
    assert decoded(image, tmp_path / "x.png").tolist() == [[[0, 0, 0], [*WHITE]]]


def test_cmyk_becomes_rgb(tmp_path):
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    pixels = decoded(cyan, tmp_path / "x.jpg", quality=100)
    assert np.abs(pixels.astype(int) - (0, 255, 255)).max() <= 4


@pytest.mark.parametrize(("extension", "stored_as"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("tif", "<i4")])
def test_16_bit_values_are_scaled_and_not_clipped(tmp_path, extension, stored_as):
    values = np.array([[0, 128, 257, 32768, 65535]])
    pixels = decoded(Image.fromarray(values.astype(stored_as)), tmp_path / f"x.{extension}")
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_a_16_bit_pgm_is_scaled_and_not_clipped(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([257, 65535], dtype=">u2").tobytes())
    assert np.asarray(decode_image(tmp_path / "x.pgm"))[0, :, 0].tolist() == [1, 255]


@pytest.mark.parametrize("value", [np.int32(-1), np.int32(65536), np.float32(0.5)])
def test_pixels_of_unknown_range_are_an_error_and_no_guess(tmp_path, value):
    Image.fromarray(np.full((2, 2), value)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif.*save it with 8 or 16 bits"):
        decode_image(tmp_path / "x.tif")


def test_the_first_frame_of_a_gif_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    pixels = decoded(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=100)
    assert (pixels == RED).all()


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.gif", "x.bmp", "x.webp", "x.tif"])
def test_a_truncated_file_is_an_error_with_its_path(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"x\.\w+ cannot be read as an image.*remove it"):
        decode_image(path)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_a_file_that_is_no_image_is_an_error_with_its_path(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.jpg cannot be read as an image"):
        decode_image(tmp_path / "x.jpg")


def test_a_file_that_has_gone_is_an_error_with_its_path(tmp_path):
    with pytest.raises(DataError, match=r"gone\.jpg cannot be read as an image \(FileNotFoundError"):
        decode_image(tmp_path / "gone.jpg")


def test_an_image_is_decoded_by_its_content_whatever_it_is_called(tmp_path):
    Image.new("RGB", (4, 4), GREEN).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert (np.asarray(decode_image(tmp_path / "x.jpg")) == GREEN).all()


def test_resizing_keeps_the_whole_image():
    wide = Image.new("RGB", (400, 100), BLUE)
    wide.paste(RED, (0, 0, 100, 100))
    wide.paste(GREEN, (300, 0, 400, 100))
    square = np.asarray(resize_whole(wide, 32))
    assert square.shape == (32, 32, 3)
    assert tuple(square[16, 2]) == RED
    assert tuple(square[16, 16]) == BLUE
    assert tuple(square[16, 29]) == GREEN


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    square = np.asarray(resize_whole(Image.fromarray(stripes), 8))
    assert np.abs(square[:, 1:-1].astype(int) - 127).max() <= 2


def test_an_image_of_the_right_size_keeps_its_pixels():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    assert np.array_equal(resize_whole(image, 32), image)


def test_a_tensor_is_normalised_channel_by_channel():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.25)
    tensor = to_tensor(image, mean, std)
    expected = (torch.tensor(np.array(image)).double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 5, 7)
    assert tensor.is_contiguous()
    torch.testing.assert_close(tensor.double(), expected.permute(2, 0, 1), rtol=0, atol=1e-5)


def read_header(path):
    return Decoder(32, Augmentation()).shape_of(path)


@pytest.mark.parametrize("read", [decode_image, read_header])
def test_an_image_of_200_megapixels_is_refused_with_both_figures_and_the_remedy(tmp_path, read):
    (tmp_path / "slide.ppm").write_bytes(b"P6 20000 10000 255\n")
    with pytest.raises(DataError) as refused:
        read(tmp_path / "slide.ppm")
    message = str(refused.value)
    assert "slide.ppm has 200,000,000 pixels, and images of more than 178,956,970 are not read" in message
    assert "save it smaller" in message
    assert "whole image file" not in message


@pytest.mark.parametrize("read", [decode_image, read_header])
def test_a_warning_that_the_user_made_an_error_is_told_with_its_own_limit(tmp_path, read):
    (tmp_path / "slide.ppm").write_bytes(b"P6 10000 10000 255\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(DataError, match="100,000,000 pixels, and images of more than 89,478,485 are not read"):
            read(tmp_path / "slide.ppm")


@pytest.mark.slow
def test_an_image_that_is_large_but_not_refused_is_read_without_a_word(tmp_path):
    Image.new("RGB", (40, 40), RED).save(tmp_path / "large.png")
    program = f"""
from PIL import Image
from attention_transfer.data import decode_image
Image.MAX_IMAGE_PIXELS = 1000
print(decode_image({str(tmp_path / "large.png")!r}).size)
"""
    done = warm.run("-c", program)
    assert done.stdout.split() == ["(40,", "40)"]
    assert done.stderr == ""
