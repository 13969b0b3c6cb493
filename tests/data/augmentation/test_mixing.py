"""Mixup and CutMix as a part of the view."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from attention_transfer import ConfigError, DataError, create_at_config
from attention_transfer.data import prepare_dataloaders
from attention_transfer.data.augmentation.mixing import draw_mix, mixed, mixed_shown
from attention_transfer.data.views import Augmentation

STILL = Augmentation(crop_scale=(1.0, 1.0), flip=False, rotation=0.0, color_jitter=0.0)


def loader_of(folder, batch_size=16, num_workers=0, **settings):
    train, *_ = prepare_dataloaders(folder, batch_size, True, num_workers, image_size=32, **settings)
    return train


def by_index(loader):
    found = {}
    for batch in loader:
        columns = (batch.indices.tolist(), batch.images, batch.labels, batch.partner_labels, batch.ratios)
        for index, *rest in zip(*columns, strict=True):
            found[index] = rest
    return found


def draws(alphas, count=2000, samples=100, size=(32, 48)):
    return [draw_mix(alphas, 0, 1, index % samples, range(samples), size) for index in range(count)]


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_ratios_are_of_the_beta_distribution(alpha):
    ratios = np.array([draw_mix((alpha, 0.0), 0, 1, index, range(4000), (32, 32)).ratio for index in range(4000)])
    assert ratios.mean() == pytest.approx(0.5, abs=0.03)
    assert ratios.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_partners_are_other_images_each_as_likely():
    partners = [draw_mix((1.0, 0.0), 0, view, 3, range(10), (32, 32)).partner for view in range(3000)]
    counts = np.bincount(partners, minlength=10)
    assert counts[3] == 0
    assert counts[[0, 1, 2, 4, 5, 6, 7, 8, 9]].min() > 250


def test_a_data_set_of_one_image_is_mixed_with_itself():
    assert draw_mix((1.0, 0.0), 0, 0, 0, range(1), (32, 32)).partner == 0


def test_partners_are_drawn_from_the_given_part_of_the_data_alone():
    assert {draw_mix((1.0, 0.0), 0, view, 12, range(10, 14), (8, 8)).partner for view in range(100)} == {10, 11, 13}


def test_of_two_kinds_each_has_half_of_the_images():
    cut = [mix.box is not None for mix in draws((0.2, 1.0))]
    assert 0.3 < np.mean(cut) < 0.7
    assert not any(mix.box for mix in draws((0.2, 0.0), 50))
    assert all(mix.box for mix in draws((0.0, 1.0), 50))


def test_the_ratio_of_a_cut_is_the_share_of_the_pixels_that_stay():
    for mix in draws((0.0, 1.0), 200):
        ones, zeros = torch.ones(1, 3, 32, 48), torch.zeros(1, 3, 32, 48)
        assert float(mixed(ones, zeros, [mix]).mean()) == pytest.approx(mix.ratio, abs=1e-6)


def test_mixup_is_the_weighted_mean_of_both_views(few_digits):
    plain = by_index_of_plain(few_digits)
    train = loader_of(few_digits, augmentation=dataclasses.replace(STILL, mixup=1.0))
    for index, (image, label, partner_label, ratio) in by_index(train).items():
        mix = draw_mix((1.0, 0.0), 0, 0, index, range(len(train.dataset)), (32, 32))
        assert float(ratio) == pytest.approx(mix.ratio)
        assert int(label) == train.dataset.targets[index]
        assert int(partner_label) == train.dataset.targets[mix.partner]
        expected = mix.ratio * plain[index] + (1 - mix.ratio) * plain[mix.partner]
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)


def by_index_of_plain(folder):
    return {
        index: image
        for batch in loader_of(folder, augmentation=STILL)
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True)
    }


def test_cutmix_shows_the_other_image_in_the_box_and_its_own_elsewhere(few_digits):
    plain = by_index_of_plain(few_digits)
    train = loader_of(few_digits, augmentation=dataclasses.replace(STILL, cutmix=1.0))
    for index, (image, _, _, _) in by_index(train).items():
        mix = draw_mix((0.0, 1.0), 0, 0, index, range(len(train.dataset)), (32, 32))
        top, left, bottom, right = mix.box
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert torch.equal(image, torch.where(inside, plain[mix.partner], plain[index]))


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_neither_workers_nor_batch_size_nor_order_nor_rank_change_a_mixed_image(few_digits, mixing):
    augmentation = dataclasses.replace(Augmentation(erasing=True), **mixing)
    one = by_index(loader_of(few_digits, 16, augmentation=augmentation))
    other = by_index(loader_of(few_digits, 7, 1, augmentation=augmentation, seed=5))
    ranks = [loader_of(few_digits, 8, augmentation=augmentation, rank=rank, world_size=2) for rank in (0, 1)]
    shares = {**by_index(ranks[0]), **by_index(ranks[1])}
    assert one.keys() == other.keys() == shares.keys()
    for index, row in one.items():
        for ours, theirs, share in zip(row, other[index], shares[index], strict=True):
            assert torch.equal(ours, theirs)
            assert torch.equal(ours, share)


def test_another_view_has_other_partners_and_a_global_generator_is_never_drawn_from(few_digits):
    train = loader_of(few_digits, augmentation=Augmentation(mixup=1.0))
    torch.manual_seed(0)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first, second = by_index(train), by_index(train)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert sum(torch.equal(first[index][3], second[index][3]) for index in first) == 0


def test_a_mixed_pixel_shows_something_where_one_image_does():
    shown, partners = torch.zeros(2, 4, 4, dtype=torch.bool), torch.zeros(2, 4, 4, dtype=torch.bool)
    shown[:, :2], partners[:, :, :2] = True, True
    blend = draw_mix((1.0, 0.0), 0, 0, 0, range(2), (4, 4))
    cut = draw_mix((0.0, 1.0), 0, 0, 0, range(2), (4, 4))._replace(box=(1, 0, 4, 3))
    blended, pasted = mixed_shown(shown, partners, [blend, cut])
    assert torch.equal(blended, shown[0] | partners[0])
    assert pasted.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_batches_unpack_to_images_and_the_images_own_labels(few_digits):
    batch = next(iter(loader_of(few_digits, augmentation=Augmentation(mixup=1.0))))
    images, labels = batch
    targets = loader_of(few_digits).dataset.targets
    assert labels.tolist() == [targets[index] for index in batch.indices]
    assert images.shape == (16, 3, 32, 32)
    moved = batch.to("cpu").own()
    assert torch.equal(moved.partner_labels, batch.partner_labels)
    assert torch.equal(moved.ratios, batch.ratios)


def test_val_and_test_are_never_mixed(few_digits):
    _, val, test = prepare_dataloaders(few_digits, 16, True, 0, image_size=32, augmentation=Augmentation(mixup=1.0))
    assert next(iter(val)).mixing is None
    assert next(iter(test)).mixing is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": 0.2}, "augment is False"),
        ({"cutmix": 1.0, "augment": True, "augment_views": "warp"}, "augment_views is 'warp'"),
        ({"mixup": -1.0, "augment": True}, "mixup is -1.0"),
    ],
)
def test_what_cannot_be_mixed_is_refused(settings, message):
    with pytest.raises(ConfigError) as refusal:
        create_at_config(**settings)
    assert message in str(refusal.value)


def test_loaders_refuse_to_mix_what_is_warped(few_digits):
    with pytest.raises(DataError, match="mixes images"):
        loader_of(few_digits, augmentation=Augmentation(mixup=1.0), augment_views="warp")
    with pytest.raises(DataError, match=r"cutmix is -2\.0"):
        Augmentation(cutmix=-2.0)
