"""Loaders that a user brings work, or fail with a sentence that says what to do."""

from __future__ import annotations

import logging
import re
from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from attention_transfer.data import Batch, check_loader, classes_of, count_classes, prepare_dataloaders, unpack
from attention_transfer.data.decoding.once import warn_anew
from attention_transfer.data.loading.user_loaders import check_labels, warn_of_unusual_values
from attention_transfer.errors import DataError

IMAGES, LABELS = torch.linspace(0, 1, 4 * 3 * 8 * 8).view(4, 3, 8, 8), torch.tensor([0, 2, 1, 0])
Pair = namedtuple("Pair", "picture kind")


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        (IMAGES, LABELS, ["a.png", "b.png", "c.png", "d.png"]),
        Pair(IMAGES, LABELS),
        {"images": IMAGES, "labels": LABELS},
        {"image": IMAGES, "label": LABELS},
        {"pixel_values": IMAGES, "labels": LABELS},
        {"x": IMAGES, "y": LABELS},
        {"input": IMAGES, "target": LABELS, "path": ["a.png"] * 4},
        (IMAGES, LABELS.to(torch.int32)),
        (IMAGES, LABELS.to(torch.uint8)),
        (IMAGES, LABELS.float()),
        (IMAGES, LABELS.tolist()),
        (IMAGES.numpy(), LABELS.numpy()),
    ],
)
def test_every_usual_batch_is_unpacked(batch):
    images, labels = unpacked = unpack(batch)
    assert torch.equal(images, IMAGES)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, LABELS)
    assert (unpacked.indices, unpacked.view) == (None, None)


def test_a_batch_of_ours_keeps_its_identity():
    indices = torch.tensor([3, 1, 4, 1])
    unpacked = unpack(Batch(IMAGES, LABELS.to(torch.int32), indices, view=5))
    assert unpacked.labels.dtype == torch.int64
    assert unpacked.indices is indices
    assert unpacked.view == 5


def test_images_in_half_precision_and_with_one_channel_are_left_alone():
    grey = IMAGES[:, :1].half()
    assert unpack((grey, LABELS)).images is grey


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (IMAGES, r"A batch is a torch\.float32 tensor of shape \[4, 3, 8, 8\]; it must be a pair"),
        ((IMAGES,), r"a tuple of 1 values \(Tensor\)"),
        ({"picture": IMAGES, "labels": LABELS}, r"a dict with the keys 'picture', 'labels'.*one of images, image"),
        ({}, r"a dict with the keys \(none\)"),
        (None, r"A batch is a NoneType"),
        ((LABELS, IMAGES), r"images of a batch are a torch\.int64 tensor of shape \[4\]|not whole"),
        (((IMAGES * 255).byte(), LABELS), r"images of a batch are a torch\.uint8 tensor.*normalise"),
        (
            (IMAGES[:, 0], LABELS),
            r"shape \[4, 8, 8\]; they must be.*give them their one channel: .*unsqueeze\(1\)",
        ),
        ((IMAGES[0], LABELS), r"images of a batch are a torch\.float32 tensor of shape \[3, 8, 8\]"),
        ((IMAGES, LABELS[:3]), r"labels of a batch are a torch\.int64 tensor of shape \[3\] for 4 images"),
        ((IMAGES, torch.eye(4)), r"shape \[4, 4\] for 4 images.*no one-hot"),
        ((IMAGES, LABELS + 0.5), r"labels of a batch are a torch\.float32 tensor of shape \[4\] and not whole"),
        ((IMAGES, torch.tensor([0.0, 1.0, float("nan"), 0.0])), r"not whole"),
        ((IMAGES, ["ant", "bee", "ant", "bee"]), r"labels of a batch are a list of 4 values \(str, str, str\)"),
        (([torch.rand(3, 4, 4), torch.rand(3, 5, 5)], LABELS[:2]), r"images of a batch are a list of 2.*collate_fn"),
    ],
)
def test_a_batch_of_another_kind_is_described_with_the_remedy(batch, message):
    with pytest.raises(DataError, match=message):
        unpack(batch)


class Restarting:
    def __iter__(self):
        return iter([(IMAGES, LABELS)])


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(IMAGES, LABELS)])


@pytest.mark.parametrize(
    "loader",
    [
        [(IMAGES, LABELS)],
        DataLoader(TensorDataset(IMAGES, LABELS)),
        DataLoader(Endless(), batch_size=None),
        Endless(),
        Restarting(),
    ],
)
def test_loaders_that_can_be_iterated_again_are_taken(loader):
    check_loader(loader, "train_loader")


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ((batch for batch in [(IMAGES, LABELS)]), r"train_loader is a generator, which ends after one pass: give a"),
        (iter([(IMAGES, LABELS)]), r"train_loader is a list_iterator.*DataLoader, a list of batches, or"),
        (zip([IMAGES], [LABELS], strict=True), r"train_loader is a zip"),
        (TensorDataset(IMAGES, LABELS), r"train_loader is a data set.*DataLoader"),
        ([], r"train_loader is empty"),
        (7, r"train_loader is a int, which cannot be iterated"),
        (None, r"train_loader is a NoneType, which cannot be iterated"),
    ],
)
def test_a_loader_that_would_fail_later_is_refused_before_training(loader, message):
    with pytest.raises(DataError, match=message):
        check_loader(loader, "train_loader")


def test_checking_a_loader_of_ours_takes_no_epoch_and_starts_no_worker(digits_folder):
    train, *_ = prepare_dataloaders(digits_folder, num_workers=1, image_size=32, augment=True)
    check_loader(train, "train_loader")
    assert train._iterator is None
    assert train.batch_sampler.next_epoch == 0


def test_classes_are_read_from_the_data_set_through_subsets(digits_folder):
    train, *_ = prepare_dataloaders(digits_folder, num_workers=0)
    assert classes_of(train) == tuple("0123456789")
    nested = Subset(Subset(train.dataset, range(10)), range(5))
    assert classes_of(DataLoader(nested)) == tuple("0123456789")


@pytest.mark.parametrize("loader", [[(IMAGES, LABELS)], DataLoader(TensorDataset(IMAGES, LABELS)), Restarting()])
def test_a_loader_without_class_names_has_none(loader):
    assert classes_of(loader) is None


def test_classes_are_counted_in_one_pass_that_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        assert count_classes([(IMAGES, LABELS), (IMAGES[:0], LABELS[:0]), (IMAGES, LABELS + 2)]) == 5
    assert "counted in one pass" in caplog.text


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([(IMAGES, LABELS - 1)], r"the label -1; labels must be 0 or greater"),
        ([(IMAGES, LABELS + 0.5)], r"not whole"),
        ([(IMAGES[:0], LABELS[:0])], r"gives no labels"),
        ([], r"gives no labels"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(loader, message):
    with pytest.raises(DataError, match=message):
        count_classes(loader)


def test_labels_that_are_numbered_from_1_are_said_with_the_remedy(caplog):
    assert count_classes([(IMAGES, torch.tensor([1, 2, 3, 4])), (IMAGES, torch.tensor([4, 3, 2, 1]))]) == 5
    [said] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == (
        "the labels go from 1 to 4, so that there are 5 classes, of which 0 has no image; if the 4 classes are "
        "numbered from 1, give labels - 1"
    )


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 3, 6], ["from 0 to 6", "7 classes", "none is 2, 4, 5", "without gaps"]),
        ([2, 3, 2, 3], ["from 2 to 3", "4 classes", "0, 1 have no image", "numbered from 0"]),
        ([0, 0, 0, 30], ["31 classes", "and 19 more"]),
    ],
)
def test_classes_without_an_image_are_said(caplog, labels, words):
    count_classes([(IMAGES, torch.tensor(labels))])
    for word in words:
        assert word in caplog.text


def test_labels_without_gaps_are_nothing_to_speak_of(caplog):
    count_classes([(IMAGES, LABELS)])
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_labels_that_are_numbered_from_1_and_reach_beyond_the_network_are_told_so():
    with pytest.raises(
        DataError, match=r"a label is 4, .*\(labels 0 to 3\); if they are numbered from 1, give labels - 1"
    ):
        check_labels(torch.tensor([1, 2, 4]), 4)
    with pytest.raises(DataError, match=r"a label is 4, .*; mend the labels"):
        check_labels(torch.tensor([0, 2, 4]), 4)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ((IMAGES * 255).round(), "whole numbers from 0 to 25"),
        (IMAGES * 255, r"divide them by 255 and normalise them"),
        (IMAGES * 60000, r"divide them by 65535"),
        (IMAGES * 255 - 128, r"bring them to \[0, 1\]"),
        ((IMAGES * 16).round(), r"whole numbers from 0 to 16"),
        ((IMAGES * 255).half(), r"divide them by 255"),
    ],
)
def test_images_that_are_not_normalised_are_said_once(caplog, images, words):
    warn_anew()
    for _ in range(2):
        warn_of_unusual_values(images)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(words, record.getMessage())


@pytest.mark.parametrize("images", [IMAGES, IMAGES.round(), IMAGES * 5 - 2.5, IMAGES[:0], IMAGES * float("nan")])
def test_images_as_networks_expect_them_are_nothing_to_speak_of(caplog, images):
    warn_anew()
    warn_of_unusual_values(images)
    assert not caplog.records
