"""How the whole of an image is brought into the rectangle that networks see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms.v2 import functional as transforms

from attention_transfer.data import prepare_dataloaders
from attention_transfer.data.decoding.decoder import Decoder
from attention_transfer.data.decoding.images import resize_whole, to_tensor
from attention_transfer.data.frame import Frame, as_frame
from attention_transfer.data.pixel_store import pixels_identity
from attention_transfer.data.rendering import render_views, render_whole, rendered_views, rendered_whole, view_matrices
from attention_transfer.data.views import Augmentation, ViewParameters
from attention_transfer.errors import ConfigError, DataError

MODES = ["squash", "crop", "pad"]


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(load_sample_image("china.jpg"))  # 427 high, 640 wide


def pixels(image, frame):
    return np.asarray(resize_whole(image, frame)).astype(int)


@pytest.mark.parametrize("sides", [(512, 512), (320, 640), (640, 320)])
def test_crop_is_the_shorter_side_resized_and_the_centre_taken_as_in_torchvision(photo, sides):
    image = photo.resize((sides[1], sides[0]))
    shorter = transforms.resize(image, 256, interpolation=transforms.InterpolationMode.BILINEAR)
    expected = np.asarray(transforms.center_crop(shorter, 224)).astype(int)
    assert np.abs(pixels(image, Frame(224, 224, "crop", 0.875)) - expected).max() <= 1


def test_crop_of_everything_shows_the_whole_of_an_image_of_that_shape(photo):
    image = photo.resize((96, 64))
    assert np.array_equal(pixels(image, Frame(32, 48, "crop", 1.0)), pixels(image, Frame(32, 48)))


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (96, 48)])
def test_pad_shows_the_whole_image_in_its_own_shape_in_the_middle(photo, size):
    frame = Frame(*size, "pad")
    images, shown = rendered_whole([np.asarray(photo)], frame)
    height, width = frame.fitted(427, 640)
    assert abs(width / height - 640 / 427) < 0.04
    rows, columns = shown[0].any(1).nonzero().flatten(), shown[0].any(0).nonzero().flatten()
    assert (len(rows), len(columns)) == (height, width)
    assert abs(rows[0] - (size[0] - 1 - rows[-1])) <= 1
    assert abs(columns[0] - (size[1] - 1 - columns[-1])) <= 1
    inside = images[0][:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert torch.equal(inside, to_tensor(photo.resize((width, height), Image.Resampling.BILINEAR)))
    assert not images[0][:, ~shown[0]].any()  # the mean colour


@pytest.mark.parametrize("mode", MODES)
def test_height_comes_before_width(photo, mode):
    assert render_whole([np.asarray(photo)], Frame(40, 72, mode)).shape == (1, 3, 40, 72)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_the_view_that_changes_nothing_is_the_whole_image_up_to_interpolation(photo, mode, size):
    frame, picture = Frame(*size, mode), np.asarray(photo)
    view, view_shown = rendered_views([picture], [ViewParameters()], frame)
    whole, whole_shown = rendered_whole([picture], frame)
    assert (view - whole).abs().mean() < 0.05
    if mode == "pad":
        assert torch.equal(view_shown, whole_shown)
    else:
        assert view_shown.all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "view",
    [ViewParameters(), ViewParameters(box=(0.1, 0.2, 0.9, 0.85), flip=True, angle=20.0)],
    ids=["whole", "together"],
)
def test_a_bright_spot_lands_where_matrix_and_region_say(mode, view):
    frame, picture = Frame(60, 100, mode), np.zeros((90, 120, 3), np.uint8)
    picture[39:42, 67:70] = 255
    left, top, right, bottom = frame.region(90, 120)
    in_frame = torch.tensor([2 * (68.5 / 120 - left) / (right - left) - 1, 2 * (40.5 / 90 - top) / (bottom - top) - 1])
    (matrix,) = view_matrices([view], frame)
    expected = torch.linalg.solve(matrix[:, :2], in_frame - matrix[:, 2])
    spot = render_views([picture], [view], frame, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))[0, 0]
    y, x = ((torch.arange(side) * 2 + 1) / side - 1 for side in (60, 100))
    landed = torch.stack([(spot.sum(0) * x).sum(), (spot.sum(1) * y).sum()]) / spot.sum()
    assert (landed - expected).abs().max() < 0.02


def test_a_view_of_the_empty_rest_alone_is_empty_and_no_nan(photo):
    view = ViewParameters(box=(0.4, 0.0, 0.6, 0.1), contrast=1.3, hue=0.05)
    images, shown = rendered_views([np.asarray(photo)], [view], Frame(64, 64, "pad"))
    assert not shown.any()
    assert not images.any()


@pytest.mark.parametrize("augmentation", [None, Augmentation(crop_scale=(0.3, 1.0))])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [64, (48, 80)])
def test_a_picture_has_the_shape_that_its_header_promises_and_all_pixels_of_the_smallest_crop(
    tmp_path, photo, augmentation, mode, size
):
    photo.save(tmp_path / "photo.png")
    decoder = Decoder(as_frame(size, mode), augmentation)
    picture = decoder(str(tmp_path / "photo.png"))
    assert picture.shape[:2] == decoder.shape_of(str(tmp_path / "photo.png"))
    if augmentation is None:
        assert torch.equal(
            render_whole([picture], decoder.frame_of_pictures), render_whole([np.asarray(photo)], decoder.frame)
        )
    else:
        left, top, right, bottom = decoder.frame.region(*picture.shape[:2])
        least = (0.3 * 0.75) ** 0.5
        assert (bottom - top) * picture.shape[0] * least >= decoder.frame.height - 1
        assert (right - left) * picture.shape[1] * least >= decoder.frame.width - 1


def test_the_key_of_squashed_squares_is_that_of_version_0_1():
    from importlib.metadata import version

    kept = {"filter": "bilinear, antialiased", "pillow": version("pillow")}
    assert Decoder(128).identity() == {"size": 128, "shorter side": None, **kept}
    assert Decoder(128, Augmentation()).identity() == {"size": 128, "shorter side": 191, **kept}
    assert Decoder(as_frame((128, 128)), Augmentation()).identity() == Decoder(128, Augmentation()).identity()


def test_every_way_to_fill_a_frame_has_pixels_of_its_own_in_the_cache():
    frames = [as_frame(64, mode) for mode in MODES]
    frames += [as_frame(64, "crop", 0.9), as_frame((64, 32)), as_frame((32, 64))]
    for augmentation in (None, Augmentation()):
        keys = {pixels_identity("data", Decoder(frame, augmentation)) for frame in frames}
        assert len(keys) == len(frames)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("augment", [False, True])
def test_batches_tell_where_they_show_an_image(few_digits, augment, num_workers):
    train, val, _ = prepare_dataloaders(few_digits, 16, augment, num_workers, image_size=(24, 40), resize="pad")
    for loader in (train, val):
        batch = next(iter(loader))
        assert batch.images.shape == (16, 3, 24, 40)
        assert batch.shown.shape == (16, 24, 40)
        assert not batch.images[~batch.shown.unsqueeze(1).expand_as(batch.images)].any()
    assert batch.shown[:, :, 8:32].all()  # of val
    assert not batch.shown[:, :, :8].any()
    assert not batch.shown[:, :, 32:].any()


def test_batches_of_filled_frames_carry_nothing_more_than_before(few_digits):
    train, *_ = prepare_dataloaders(few_digits, 16, num_workers=0, image_size=32, resize="crop")
    assert next(iter(train)).shown is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": (32, 4)}, r"image_size is \(32, 4\)"),
        ({"image_size": (32, 32, 32)}, "image_size is"),
        ({"resize": "stretch"}, "resize is 'stretch'"),
        ({"crop_pct": 1.5}, r"crop_pct is 1\.5"),
    ],
)
def test_a_frame_that_cannot_be_is_named(few_digits, settings, message):
    from attention_transfer import create_at_config

    with pytest.raises(DataError, match=message):
        prepare_dataloaders(few_digits, 16, num_workers=0, **settings)
    with pytest.raises(ConfigError, match=message):
        create_at_config(**settings)


def test_a_pair_of_equal_sides_is_a_square():
    from attention_transfer import create_at_config

    assert create_at_config(image_size=[48, 48])["image_size"] == 48
    assert create_at_config(image_size=[48, 64])["image_size"] == (48, 64)
