"""A batch of views from decoded pictures: where pixels come from, and on what they depend."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from attention_transfer.data.decoding.images import resize_whole, to_tensor
from attention_transfer.data.rendering import render_views, render_whole, view_matrices
from attention_transfer.data.views import Augmentation, ViewParameters, draw_views
from attention_transfer.errors import DataError

STRONG = Augmentation(crop_scale=(0.2, 1.0), rotation=30.0, color_jitter=0.5)
TOGETHER = ViewParameters(box=(0.1, 0.25, 0.8, 0.95), flip=True, angle=20.0)


@pytest.fixture(scope="module")
def photo():
    return load_sample_image("china.jpg").copy()


@pytest.fixture(scope="module")
def muted(photo):
    return (64 + photo[:320, :320] // 2).astype(np.uint8)  # so that no change of colours is clipped


@pytest.fixture(scope="module")
def pieces(photo):
    """128 pieces of 32 x 32."""
    rng = np.random.default_rng(0)
    corners = zip(rng.integers(0, 390, 128).tolist(), rng.integers(0, 600, 128).tolist(), strict=True)
    return [photo[y : y + 32, x : x + 32] for y, x in corners]


@pytest.fixture(scope="module")
def mixed(photo):
    """128 pieces of many sizes: some are enlarged and some are reduced to 32 x 32 first."""
    rng = np.random.default_rng(1)
    return [photo[: int(height), : int(width)] for height, width in rng.integers(8, 200, (128, 2))]


def one(picture, view, size):
    """[3, size, size], from 0 to 255."""
    return 255 * render_views([picture], [view], size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))[0]


def centroid(weights):
    """(x, y) from -1 to 1 of a bright spot in [H, W]."""
    y, x = ((torch.arange(length, dtype=torch.float64) * 2 + 1) / length - 1 for length in weights.shape)
    total = weights.sum()
    return torch.stack([(weights.sum(0) * x).sum() / total, (weights.sum(1) * y).sum() / total])


@pytest.mark.parametrize("size", [48, 130])
@pytest.mark.parametrize(
    "view",
    [
        ViewParameters(),
        ViewParameters(box=(0.1, 0.25, 0.8, 0.95)),
        ViewParameters(flip=True),
        ViewParameters(angle=25.0),
        ViewParameters(angle=-140.0),
        TOGETHER,
    ],
    ids=["whole", "crop", "flip", "rotation", "far rotation", "together"],
)
def test_a_bright_spot_lands_where_the_inverse_matrix_says(view, size):
    picture = np.zeros((90, 120, 3), np.uint8)
    picture[33:36, 68:71] = 255
    (matrix,) = view_matrices([view]).double()
    place = torch.tensor([2 * 69.5 / 120 - 1, 2 * 34.5 / 90 - 1], dtype=torch.float64)
    expected = torch.linalg.solve(matrix[:, :2], place - matrix[:, 2])
    landed = centroid(one(picture, view, size)[0].double())
    assert (landed - expected).abs().max() < 0.5 / size  # a quarter of a pixel


def test_matrices_turn_counter_clockwise_in_the_frame_of_the_flipped_crop():
    (matrix,) = view_matrices([ViewParameters(box=(0.0, 0.0, 0.5, 1.0), flip=True, angle=90.0)])
    top_left, top_right = matrix @ torch.tensor([-1.0, -1.0, 1.0]), matrix @ torch.tensor([1.0, -1.0, 1.0])
    # Turning brings the top right corner to the top left; before, the flip brought it there from the top left.
    torch.testing.assert_close(top_left, torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(top_right, torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("size", [32, 33, 100])
def test_the_view_that_changes_nothing_is_the_whole_image(photo, size):
    picture = photo[:size, :size]
    assert torch.equal(render_views([picture], [ViewParameters()], size), render_whole([picture], size))


@pytest.mark.parametrize("size", [32, 45, 96])
@pytest.mark.parametrize("sides", [(427, 640), (32, 32), (20, 30)])
def test_a_flipped_view_is_the_mirror_image_to_the_bit(photo, sides, size):
    picture = photo[: sides[0], : sides[1]]
    view = ViewParameters(box=(0.13, 0.2, 0.71, 0.9), contrast=1.3, hue=0.05)
    flipped = one(picture, dataclasses.replace(view, flip=True), size)
    assert torch.equal(flipped, one(picture, view, size).flip(-1))


@pytest.mark.parametrize("kind", ["pieces", "mixed"])
@pytest.mark.parametrize("batch_size", [1, 7, 128])
def test_an_image_does_not_depend_on_its_batch_nor_on_threads(request, kind, batch_size):
    pictures = request.getfixturevalue(kind)
    views = draw_views(STRONG, 0, 0, range(128))
    views[3] = ViewParameters()  # beside neighbours whose colours change
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = render_views(pictures, views, 32)
        order = np.random.default_rng(2).permutation(128)
        for count in (1, 2):
            torch.set_num_threads(count)
            for first in range(0, 128, batch_size):
                some = order[first : first + batch_size]
                got = render_views([pictures[i] for i in some], [views[i] for i in some], 32)
                assert torch.equal(got, expected[some])
    finally:
        torch.set_num_threads(threads)


def test_pictures_of_one_size_are_no_special_case(pieces, photo):
    views = draw_views(STRONG, 0, 0, range(9))
    alike = render_views(pieces[:8], views[:8], 32)
    assert torch.equal(render_views([*pieces[:8], photo[:40, :50]], views, 32)[:8], alike)


def test_large_batches_of_large_views_are_the_small_ones(photo):
    views = draw_views(STRONG, 0, 0, range(5))
    pictures = [photo, photo[:300], photo[:, :200], photo, photo[:64, :64]]
    all_or_raise = render_views(pictures, views, 256)
    for index in range(5):
        assert torch.equal(all_or_raise[index], render_views([pictures[index]], [views[index]], 256)[0])


def supersampled(picture, view, size, lookups=8):
    """The view by PyTorch's own affine_grid, at many places a pixel."""
    planes = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
    places = F.affine_grid(view_matrices([view]), [1, 3, size * lookups, size * lookups], align_corners=False)
    return F.avg_pool2d(F.grid_sample(planes, places, padding_mode="border", align_corners=False), lookups)[0]


@pytest.mark.parametrize("size", [64, 200])
@pytest.mark.parametrize("view", [ViewParameters(box=(0.1, 0.25, 0.8, 0.95)), TOGETHER], ids=["crop", "together"])
def test_a_view_is_antialiased_from_any_resolution(photo, view, size):
    truth, shown = supersampled(photo, view, size), one(np.full_like(photo, 255), view, size) > 0
    assert shown.float().mean() > 0.9
    ours, plain = (
        (view_of_it - truth)[shown].square().mean()
        for view_of_it in (one(photo, view, size), supersampled(photo, view, size, lookups=1))
    )
    assert ours < 0.3 * plain
    assert 10 * torch.log10(255**2 / ours) > 34


def test_stripes_finer_than_a_pixel_become_grey():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 200
    view = ViewParameters(box=(0.2, 0.2, 0.9, 0.9), angle=10.0)
    assert (one(stripes, view, 48) - 100).abs().max() < 8
    assert (one(stripes, view, 48) - supersampled(stripes, view, 48, 1)).abs().max() > 60


def test_what_lies_outside_the_image_is_zero_and_what_lies_outside_the_crop_is_shown(photo):
    turned = render_views([photo], [ViewParameters(angle=45.0, brightness=1.4, contrast=0.6)], 64)[0]
    assert (turned[:, 0, 0] == 0).all()
    assert (turned[:, -1, -1] == 0).all()
    bare = (turned == 0).all(dim=0).float().mean().item()
    assert bare == pytest.approx(1 - 2 * (2**0.5 - 1), abs=0.02)  # an octagon is left of a square
    grey = np.full((80, 80, 3), 90, np.uint8)
    assert (one(grey, ViewParameters(box=(0.25, 0.25, 0.75, 0.75), angle=45.0), 64) - 90).abs().max() < 1e-3


@pytest.mark.parametrize("factor", [0.8, 1.2])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colours_change_as_in_torchvision(muted, name, factor):
    view = one(muted, ViewParameters(**{name: factor}), 320)
    expected = getattr(transforms, f"adjust_{name}")(torch.from_numpy(muted).permute(2, 0, 1), factor)
    assert (view - expected).abs().max() <= 1.5


def test_colours_change_in_the_order_brightness_contrast_saturation(muted):
    view = one(muted, ViewParameters(brightness=0.9, contrast=1.2, saturation=0.7), 320)
    expected = transforms.adjust_brightness(torch.from_numpy(muted).permute(2, 0, 1), 0.9)
    expected = transforms.adjust_saturation(transforms.adjust_contrast(expected, 1.2), 0.7)
    assert (view - expected).abs().max() <= 3


def test_contrast_keeps_the_mean_grey_of_what_is_shown(muted):
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    before, after = (one(muted, ViewParameters(angle=45.0, contrast=contrast), 64) for contrast in (1.0, 0.5))
    shown = (before > 0).all(dim=0)
    assert 0.8 < shown.float().mean() < 0.85
    means = [(luma * view).sum(dim=0)[shown].mean().item() for view in (before, after)]
    assert means[0] == pytest.approx(means[1], abs=1e-2)
    assert (luma * after).sum(dim=0)[shown].std() < 0.6 * (luma * before).sum(dim=0)[shown].std()


def test_a_hue_shift_turns_red_towards_yellow_or_magenta_and_keeps_greys_and_the_luma(muted):
    red = np.full((8, 8, 3), (160, 80, 80), np.uint8)
    for hue in (0.05, -0.05):
        theirs = transforms.adjust_hue(torch.from_numpy(red).permute(2, 0, 1), hue)
        for image in (one(red, ViewParameters(hue=hue), 8), theirs):
            _, green, blue = image[:, 0, 0]
            assert green > blue if hue > 0 else blue > green
    grey = np.full((8, 8, 3), 90, np.uint8)
    assert (one(grey, ViewParameters(hue=0.1), 8) - 90).abs().max() < 1e-3
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    before, after = one(muted, ViewParameters(), 64), one(muted, ViewParameters(hue=0.1), 64)
    assert (luma * (before - after)).sum(dim=0).abs().max() < 0.1
    assert (before - after).abs().max() > 5


def test_colours_are_clipped_to_what_a_pixel_can_be(photo):
    bright = one(photo, ViewParameters(brightness=2.0), 64)
    assert bright.max() == pytest.approx(255)
    assert bright.min() >= 0


def test_images_are_normalised_by_the_given_numbers(photo):
    mean, std = (0.1, 0.5, 0.9), (0.5, 0.25, 2.0)
    pixels = one(photo, TOGETHER, 40)
    expected = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    shown = one(np.full_like(photo, 255), TOGETHER, 40) > 0
    assert 0.9 < shown.float().mean() < 1
    (view,) = render_views([photo], [TOGETHER], 40, mean, std)
    torch.testing.assert_close(view, torch.where(shown, expected, 0.0))


def test_whole_images_are_those_made_one_by_one_to_the_bit(pieces, mixed):
    for pictures in (pieces, mixed):
        expected = [to_tensor(resize_whole(Image.fromarray(picture), 32)) for picture in pictures]
        assert torch.equal(render_whole(pictures, 32), torch.stack(expected))


def test_pictures_in_a_file_that_cannot_be_written_are_read_without_a_warning(photo, pieces):
    pictures = [photo.copy(), pieces[0].copy(), pieces[1].copy()]
    for picture in pictures:
        picture.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render_views(pictures, draw_views(STRONG, 0, 0, range(3)), 32)
        render_views(pictures[1:], draw_views(STRONG, 0, 0, range(2)), 32)
        render_whole(pictures, 32)


@pytest.mark.parametrize("sides", [(1, 1), (1, 300), (300, 1)])
def test_the_thinnest_pictures_have_views(sides):
    picture = np.full((*sides, 3), 70, np.uint8)
    views = draw_views(dataclasses.replace(STRONG, color_jitter=0.0), 0, 0, range(20))
    images = render_views([picture] * 20, views, 16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    torch.testing.assert_close(images.unique(), torch.tensor([0.0, 70 / 255]))


def test_of_no_pictures_there_are_no_views(photo):
    assert render_views([], [], 24).shape == render_whole([], 24).shape == (0, 3, 24, 24)
    assert view_matrices([]).shape == (0, 2, 3)
    with pytest.raises(DataError, match="2 pictures and 1 views"):
        render_views([photo, photo], [TOGETHER], 24)
