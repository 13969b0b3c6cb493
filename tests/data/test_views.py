"""Augmentation as a function of (seed, view, index)."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from attention_transfer.data.rendering import render_views
from attention_transfer.data.views import Augmentation, ViewParameters, draw_view, draw_views
from attention_transfer.errors import DataError

STRONG = Augmentation(crop_scale=(0.2, 1.0), rotation=30.0, color_jitter=0.5)


@pytest.fixture(scope="module")
def photo():
    return Image.fromarray(load_sample_image("china.jpg"))


def many_views(augmentation, count=500):
    return draw_views(augmentation, seed=0, view=0, indices=range(count))


def test_the_same_arguments_give_the_same_view():
    assert draw_view(STRONG, 1, 2, 3) == draw_view(STRONG, 1, 2, 3)


def test_views_drawn_together_are_those_drawn_one_by_one():
    indices = [7, 0, 7, 49_999, 2**40, 3]
    assert draw_views(STRONG, 1, 2, indices) == [draw_view(STRONG, 1, 2, index) for index in indices]
    assert draw_views(STRONG, 1, 2, []) == []


def test_the_numbers_are_those_of_splitmix64_by_its_definition():
    low, seed = 2**64 - 1, int(np.random.SeedSequence((1, 2)).generate_state(1, np.uint64)[0])
    z = (seed + (10 * 3 + 6) * 0x9E3779B97F4A7C15) & low  # the sixth of ten numbers turns the image
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & low
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & low
    number = ((z ^ (z >> 31)) >> 11) / 2**53
    assert draw_view(STRONG, 1, 2, 3).angle == 30.0 * (2 * number - 1)


def test_neighbouring_indices_views_and_seeds_are_unrelated():
    def angles(seed=0, view=0, shift=0):
        return [parameters.angle for parameters in draw_views(STRONG, seed, view, range(shift, shift + 4000))]

    for other in (angles(seed=1), angles(view=1), angles(shift=1)):
        assert abs(np.corrcoef(angles(), other)[0, 1]) < 0.06
    assert abs(np.mean(angles())) < 1.2
    assert np.std(angles()) == pytest.approx(60 / 12**0.5, rel=0.03)


@pytest.mark.parametrize("other", [(0, 2, 3), (1, 0, 3), (1, 2, 0), (2, 1, 3), (1, 3, 2)])
def test_another_seed_view_or_index_gives_another_view(other):
    assert draw_view(STRONG, 1, 2, 3).box != draw_view(STRONG, *other).box


def test_a_view_leaves_the_global_generators_alone(photo):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    render_views([np.asarray(photo)], [draw_view(STRONG, 0, 0, 0)], 64)
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


def test_an_augmentation_of_no_strength_is_the_whole_image():
    nothing = Augmentation(crop_scale=(1.0, 1.0), flip=False, rotation=0.0, color_jitter=0.0)
    assert set(many_views(nothing, 50)) == {ViewParameters()}


def test_switching_one_change_off_leaves_the_others_where_they_are():
    with_flips, without = many_views(STRONG), many_views(dataclasses.replace(STRONG, flip=False, color_jitter=0.0))
    assert [(view.box, view.angle) for view in with_flips] == [(view.box, view.angle) for view in without]


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
