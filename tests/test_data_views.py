"""Augmentation as a function of (seed, view, index)."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from attention_transfer.data.images import resize_whole
from attention_transfer.data.views import Augmentation, ViewParameters, apply_view, draw_view, mean_colour
from attention_transfer.errors import DataError

STRONG = Augmentation(crop_scale=(0.2, 1.0), rotation=30.0, color_jitter=0.5)


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(load_sample_image("china.jpg"))


def pixels(image):
    return np.asarray(image).astype(int)


def many_views(augmentation, count=500):
    return [draw_view(augmentation, seed=0, view=0, index=index) for index in range(count)]


def test_the_same_arguments_give_the_same_view():
    assert draw_view(STRONG, 1, 2, 3) == draw_view(STRONG, 1, 2, 3)


@pytest.mark.parametrize("other", [(0, 2, 3), (1, 0, 3), (1, 2, 0), (2, 1, 3), (1, 3, 2)])
def test_another_seed_view_or_index_gives_another_view(other):
    assert draw_view(STRONG, 1, 2, 3).box != draw_view(STRONG, *other).box


def test_a_view_leaves_the_global_generators_alone(photo):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    apply_view(photo, draw_view(STRONG, 0, 0, 0), 64)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_crops_keep_their_scale_and_aspect_ratio_and_lie_in_the_image():
    for left, top, right, bottom in (view.box for view in many_views(STRONG)):
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
        width, height = right - left, bottom - top
        assert 0.2 - 1e-9 <= width * height <= 1
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9


def test_crops_reach_every_part_of_the_image():
    boxes = np.array([view.box for view in many_views(Augmentation(crop_scale=(0.1, 0.2)))])
    assert boxes.min(axis=0)[:2].max() < 0.02
    assert boxes.max(axis=0)[2:].min() > 0.98


def test_about_half_of_the_views_are_mirrored():
    flips = sum(view.flip for view in many_views(Augmentation(flip=True), 1000))
    assert 420 < flips < 580


def test_strengths_bound_the_changes():
    views = many_views(STRONG)
    assert 25 < max(abs(view.angle) for view in views) <= 30
    for name in ("brightness", "contrast", "saturation"):
        factors = [getattr(view, name) for view in views]
        assert 0.5 <= min(factors) < 0.55
        assert 1.45 < max(factors) <= 1.5
    assert 0.045 < max(abs(view.hue) for view in views) <= 0.05


def test_an_augmentation_of_no_strength_is_the_whole_image(photo):
    nothing = Augmentation(crop_scale=(1.0, 1.0), flip=False, rotation=0.0, color_jitter=0.0)
    assert set(many_views(nothing, 50)) == {ViewParameters()}
    assert np.array_equal(apply_view(photo, ViewParameters(), 96), resize_whole(photo, 96))


def test_switching_one_change_off_leaves_the_others_where_they_are():
    with_flips, without = many_views(STRONG), many_views(dataclasses.replace(STRONG, flip=False, color_jitter=0.0))
    assert [(view.box, view.angle) for view in with_flips] == [(view.box, view.angle) for view in without]


def test_a_crop_is_taken_from_the_full_resolution(photo):
    photo = photo.crop((0, 0, 640, 400))
    view = apply_view(photo, ViewParameters(box=(0.25, 0.5, 0.75, 1.0)), 128)
    expected = resize_whole(photo.crop((160, 200, 480, 400)), 128)
    inside = slice(2, -2)  # at the border of a box the filter also sees its neighbours
    assert np.abs(pixels(view) - pixels(expected))[inside, inside].max() <= 1


def test_a_flip_mirrors_left_and_right(photo):
    mirrored = apply_view(photo, ViewParameters(flip=True), 64)
    assert np.array_equal(pixels(mirrored), pixels(resize_whole(photo, 64))[:, ::-1])


def test_a_rotation_is_counter_clockwise_and_lays_the_fill_bare(photo):
    rotated = apply_view(photo, ViewParameters(angle=30.0), 64, fill=(1, 2, 3))
    expected = transforms.rotate(resize_whole(photo, 64), 30.0, InterpolationMode.BILINEAR, fill=[1, 2, 3])
    assert np.array_equal(rotated, expected)
    assert np.asarray(rotated)[0, 0].tolist() == [1, 2, 3]
    assert np.array_equal(apply_view(photo, ViewParameters(angle=90.0), 64), np.rot90(resize_whole(photo, 64)))


def test_corners_are_filled_with_the_mean_colour(photo):
    assert mean_colour((0.5, 0.25, 1.0)) == (128, 64, 255)
    assert np.asarray(apply_view(photo, ViewParameters(angle=45.0), 64))[0, 0].tolist() == list(mean_colour())


@pytest.mark.parametrize("factor", [0.8, 1.2])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_agrees_with_torchvision(photo, name, factor):
    muted = photo.point([64 + value // 2 for value in range(256)] * 3)  # so that nothing is clipped
    view = apply_view(muted, ViewParameters(**{name: factor}), 64)
    expected = getattr(transforms, f"adjust_{name}")(resize_whole(muted, 64), factor)
    assert np.abs(pixels(view) - pixels(expected)).max() <= 2


def test_jitter_is_applied_in_the_order_brightness_contrast_saturation(photo):
    muted = photo.point([64 + value // 2 for value in range(256)] * 3)
    view = apply_view(muted, ViewParameters(brightness=0.9, contrast=1.2, saturation=0.7), 64)
    expected = transforms.adjust_brightness(resize_whole(muted, 64), 0.9)
    expected = transforms.adjust_saturation(transforms.adjust_contrast(expected, 1.2), 0.7)
    assert np.abs(pixels(view) - pixels(expected)).max() <= 3


def test_a_hue_shift_turns_red_towards_yellow_or_towards_magenta_as_in_torchvision():
    red = Image.new("RGB", (8, 8), (160, 80, 80))
    for hue in (0.05, -0.05):
        ours, theirs = apply_view(red, ViewParameters(hue=hue), 8), transforms.adjust_hue(red, hue)
        for image in (ours, theirs):
            _, green, blue = pixels(image)[0, 0]
            assert green > blue if hue > 0 else blue > green


def test_a_hue_shift_keeps_greys_and_the_luma(photo):
    grey = Image.new("RGB", (8, 8), (90, 90, 90))
    assert np.array_equal(apply_view(grey, ViewParameters(hue=0.1), 8), grey)
    muted = photo.point([64 + value // 2 for value in range(256)] * 3)
    before, after = resize_whole(muted, 64), apply_view(muted, ViewParameters(hue=0.1), 64)
    assert np.abs(pixels(before.convert("L")) - pixels(after.convert("L"))).max() <= 2
    assert np.abs(pixels(before) - pixels(after)).max() > 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale is \(0\.0, 1\.0\)"),
        ({"crop_scale": (0.8, 0.5)}, r"crop_scale is \(0\.8, 0\.5\)"),
        ({"crop_scale": (0.5, 1.5)}, r"crop_scale is \(0\.5, 1\.5\)"),
        ({"rotation": -1.0}, r"rotation is -1\.0"),
        ({"rotation": float("nan")}, r"rotation is nan"),
        ({"color_jitter": 1.5}, r"color_jitter is 1\.5"),
    ],
)
def test_a_strength_out_of_range_is_named(settings, message):
    with pytest.raises(DataError, match=message):
        Augmentation(**settings)
