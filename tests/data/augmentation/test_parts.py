"""Parts of augmentation: pad-and-crop, random erasing and TrivialAugment."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as transforms

from attention_transfer import ConfigError, create_at_config
from attention_transfer.data import prepare_dataloaders
from attention_transfer.data.augmentation.trivial import GEOMETRIC, KINDS, TrivialChange
from attention_transfer.data.frame import Frame
from attention_transfer.data.rendering import render_views, rendered_views, view_matrices
from attention_transfer.data.views import Augmentation, ViewParameters, draw_view, draw_views

STILL = Augmentation(crop_scale=(1.0, 1.0), flip=False, rotation=0.0, color_jitter=0.0)
ALL = Augmentation(pad_crop=True, erasing=True, trivial=True)
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(scope="module")
def photo():
    return load_sample_image("china.jpg")


@pytest.fixture(scope="module")
def piece(photo):
    return np.ascontiguousarray(photo[100:132, 200:232])


def pixels(picture, view, size=32):
    """uint8 [3, H, W]."""
    return (255 * render_views([picture], [view], size, **RAW)[0]).round().to(torch.uint8)


def with_part(**parts):
    return dataclasses.replace(STILL, **parts)


def test_switching_parts_on_leaves_crop_flip_rotation_and_colours_where_they_are():
    plain, parts = (draw_views(augmentation, 3, 1, range(100)) for augmentation in (Augmentation(), ALL))
    none = {"shift": None, "trivial": None, "erased": None}
    assert [dataclasses.replace(view, **none) for view in parts] == plain
    alone = draw_views(dataclasses.replace(Augmentation(), erasing=True), 3, 1, range(100))
    assert [view.erased for view in alone] == [view.erased for view in parts]


def test_views_with_all_parts_drawn_together_are_those_drawn_one_by_one():
    indices = [7, 0, 7, 49_999, 3]
    assert draw_views(ALL, 1, 2, indices) == [draw_view(ALL, 1, 2, index) for index in indices]


def test_pad_and_crop_gives_the_very_pixels_of_reflection_padding_and_a_random_crop(piece):
    padded, seen = np.pad(piece, ((4, 4), (4, 4), (0, 0)), mode="reflect"), Counter()
    for view in draw_views(with_part(pad_crop=True), 0, 0, range(200)):
        matrix = view_matrices([view], 32)[0]
        x, y = (round(float(16 * matrix[axis, 2])) for axis in (0, 1))
        expected = padded[4 + y : 36 + y, 4 + x : 36 + x].transpose(2, 0, 1)
        assert np.array_equal(pixels(piece, view).numpy(), expected)
        seen[x] += 1
    assert sorted(seen) == list(range(-4, 5))


def test_every_shift_is_equally_likely():
    matrices = view_matrices(draw_views(with_part(pad_crop=True), 0, 0, range(9000)), 32)
    for axis in (0, 1):
        counts = Counter((16 * matrices[:, axis, 2]).round().int().tolist())
        assert sorted(counts) == list(range(-4, 5))
        assert max(counts.values()) < 1.3 * min(counts.values())


def test_the_shift_is_by_an_eighth_of_each_side():
    matrices = view_matrices(draw_views(with_part(pad_crop=True), 0, 0, range(3000)), (64, 128))
    assert (64 * matrices[:, 0, 2]).round().abs().max() == 16
    assert (32 * matrices[:, 1, 2]).round().abs().max() == 8


def test_reflection_counts_as_showing_no_image(piece):
    view = dataclasses.replace(ViewParameters(), shift=(0.99, -1.0))  # 4 pixels to the right, and up
    images, shown = rendered_views([piece], [view], Frame(32, 32), **RAW)
    assert shown[0, 4:, :28].all()
    assert not shown[0, :4].any()
    assert not shown[0, :, 28:].any()
    assert images[0, :, :4].std() > 0


def test_beyond_an_image_in_a_padded_frame_nothing_is_reflected(photo):
    view = dataclasses.replace(ViewParameters(), shift=(0.99, -1.0))
    images, shown = rendered_views([photo], [view], Frame(32, 32, "pad"))
    assert not images[0][:, ~shown[0]].any()


def torchvisions(picture, change):
    """What torchvision's TrivialAugmentWide makes of a picture with this change: uint8 [3, H, W]."""
    strength = change.strength / 255 if change.kind == "Solarize" else change.strength
    image = torch.from_numpy(picture).permute(2, 0, 1).contiguous()
    apply = transforms.TrivialAugmentWide()._apply_image_or_video_transform
    return apply(image, change.kind, strength, interpolation=InterpolationMode.BILINEAR, fill={torch.Tensor: 0})


@pytest.mark.parametrize("kind", sorted(set(KINDS) - GEOMETRIC))
def test_a_change_of_colours_is_torchvisions_to_the_bit(piece, kind):
    drawn = {view.trivial for view in draw_views(with_part(trivial=True), 0, 0, range(3000))}
    of_kind = [change for change in drawn if change.kind == kind]
    assert of_kind
    for change in of_kind:
        ours = pixels(piece, ViewParameters(trivial=change))
        difference = (ours.int() - torchvisions(piece, change).int()).abs().max()
        assert difference <= (1 if kind == "Contrast" else 0), change


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
@pytest.mark.parametrize("kind", sorted(GEOMETRIC))
@pytest.mark.parametrize("share", [-0.6, 0.2, 0.9])
def test_a_change_of_geometry_is_torchvisions_and_in_the_matrix(photo, kind, size, share):
    greatest = {"Rotate": 135.0, "TranslateX": 32.0, "TranslateY": 32.0}.get(kind, 0.99)
    change = TrivialChange(kind, share * greatest)
    picture = np.ascontiguousarray(photo[: size[0], : size[1]])
    images, shown = rendered_views([picture], [ViewParameters(trivial=change)], Frame(*size), **RAW)
    theirs = torchvisions(picture, change)
    whole = torchvisions(np.full_like(picture, 255), change)[0] == 255  # where all of a pixel is image
    ours = (255 * images[0]).round()
    assert (ours - theirs.float())[:, whole].abs().max() <= 1
    assert (shown[0] & ~whole).sum() <= 0.06 * shown[0].numel()
    assert shown[0][whole].all()


def test_every_kind_and_strength_of_trivial_augment_is_drawn_alike():
    drawn = [view.trivial for view in draw_views(with_part(trivial=True), 0, 0, range(14_000))]
    kinds = Counter(change.kind for change in drawn)
    assert set(kinds) == set(KINDS)
    assert max(kinds.values()) < 1.25 * min(kinds.values())
    rotations = [change.strength for change in drawn if change.kind == "Rotate"]
    assert {round(abs(strength) / 4.5) for strength in rotations} == set(range(31))
    assert 0.4 < np.mean(np.array(rotations) > 0) < 0.6
    assert {change.strength for change in drawn if change.kind == "Posterize"} == {2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}


def test_half_of_the_views_lose_a_part_which_shows_nothing_and_the_rest_stays(piece):
    views = draw_views(with_part(erasing=True), 0, 0, range(400))
    erased = [view for view in views if view.erased is not None]
    assert 0.42 < len(erased) / len(views) < 0.58
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (view.erased for view in erased)]
    assert 0.02 <= min(areas) < 0.05
    assert 0.36 < max(areas) <= 0.4
    before = render_views([piece], [ViewParameters()], 32)[0]
    images, shown = rendered_views([piece] * len(erased), erased, Frame(32, 32))
    for image, seen, area in zip(images, shown, areas, strict=True):
        assert not image[:, ~seen].any()  # the mean colour
        assert torch.equal(image[:, seen], before[:, seen])
        assert abs(float((~seen).float().mean()) - area) < 0.06


@pytest.mark.parametrize("frame", [Frame(32, 32), Frame(24, 40, "pad"), Frame(40, 24, "crop")])
def test_with_all_parts_an_image_depends_neither_on_its_batch_nor_on_threads(photo, frame):
    pictures = [photo[: 30 + 3 * i, : 90 - 2 * i] for i in range(30)]
    views = draw_views(ALL, 0, 0, range(30))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = rendered_views(pictures, views, frame)
        torch.set_num_threads(2)
        for i in np.random.default_rng(0).permutation(30).tolist():
            image, shown = rendered_views(pictures[i : i + 1], views[i : i + 1], frame)
            assert torch.equal(image[0], expected.images[i])
            assert torch.equal(shown[0], expected.shown[i])
    finally:
        torch.set_num_threads(threads)


def test_a_large_image_of_more_contrast_does_not_depend_on_threads(photo):
    picture, view = np.tile(photo, (1, 2, 1))[:420, :1200], ViewParameters(trivial=TrivialChange("Contrast", 0.77))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = render_views([picture], [view], (420, 1200))
        torch.set_num_threads(2)
        assert torch.equal(render_views([picture], [view], (420, 1200)), one)
    finally:
        torch.set_num_threads(threads)


def test_workers_and_batch_size_change_no_pixel(few_digits):
    def epoch(batch_size, num_workers):
        train, *_ = prepare_dataloaders(
            few_digits, batch_size, True, num_workers, image_size=(24, 32), resize="pad", augmentation=ALL
        )
        found = {}
        for batch in train:
            for index, image, shown in zip(batch.indices.tolist(), batch.images, batch.shown, strict=True):
                found[index] = torch.cat([image, shown[None]])
        return found

    here, there = epoch(16, 0), epoch(7, 1)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[index], there[index]) for index in here)


@pytest.mark.parametrize(
    ("augmentation", "mask_rotation", "tells"),
    [
        (Augmentation(), False, False),
        (Augmentation(), True, True),
        (with_part(pad_crop=True), False, True),
        (with_part(erasing=True), False, True),
        (with_part(trivial=True), False, True),
    ],
)
def test_batches_tell_what_is_shown_where_something_may_be_empty(few_digits, augmentation, mask_rotation, tells):
    train, val, _ = prepare_dataloaders(
        few_digits, 90, True, 0, image_size=32, augmentation=augmentation, mask_rotation=mask_rotation
    )
    batch = next(iter(train))
    assert (batch.shown is not None) == tells
    assert not tells or 0.5 < batch.shown.float().mean() < 1
    assert next(iter(val)).shown is None


def test_the_key_of_the_views_of_version_0_1_is_what_it_was_and_every_part_is_in_it():
    assert Augmentation().identity() == {
        "crop_scale": (0.6, 1.0), "flip": True, "rotation": 10.0, "color_jitter": 0.2
    }  # fmt: skip
    assert Augmentation(flip=False, rotation=0.0).identity().keys() == Augmentation().identity().keys()
    for part in ("pad_crop", "erasing", "trivial"):
        assert dataclasses.replace(Augmentation(), **{part: True}).identity()[part] is True


def test_settings_name_the_parts():
    from attention_transfer.config import resolve_config
    from attention_transfer.training.setup.data.loaders import augmentation_of

    assert augmentation_of(resolve_config({})) == Augmentation()
    chosen = resolve_config({"augment": True, "augmentation": "pad_crop", "flip": False})
    assert augmentation_of(chosen) == with_part(pad_crop=True)
    chosen = resolve_config({"augment": True, "augmentation": ["default", "erasing"], "rotation": 3.0})
    assert augmentation_of(chosen) == Augmentation(rotation=3.0, erasing=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augmentation": "trivial"}, "augment is False"),
        ({"augment": True, "augmentation": "autoaugment"}, "list of default | pad_crop | erasing | trivial"),
        ({"augment": True, "augmentation": ("erasing", "erasing")}, "named once"),
        ({"augment": True, "augmentation": ()}, "augmentation is"),
    ],
)
def test_parts_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError) as refusal:
        create_at_config(**settings)
    assert message in str(refusal.value)
