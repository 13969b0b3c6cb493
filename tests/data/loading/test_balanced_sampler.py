"""The balanced sampler: as many images of each class, in an order that seed and epoch decide alone."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from attention_transfer import DataError, prepare_dataloaders
from attention_transfer.data.loading.sampler import EpochBatchSampler

LABELS = [0] * 20 + [1] * 3 + [2] * 11 + [4] * 1


def sampler(seed=1, labels=LABELS, **settings):
    return EpochBatchSampler(len(labels), 8, shuffle=True, balance=labels, seed=seed, **settings)


def drawn(sampler):
    return [index for _, index in chain(*sampler)]


def test_an_epoch_has_as_many_images_as_before_and_the_same_number_of_each_class():
    indices = drawn(sampler())
    assert len(indices) == len(LABELS)
    assert sorted(Counter(LABELS[index] for index in indices).values()) == [8, 9, 9, 9]
    assert len(sampler()) == len(EpochBatchSampler(len(LABELS), 8, shuffle=True))


def test_a_small_class_comes_up_whole_before_one_of_its_images_comes_up_again():
    counts = Counter(drawn(sampler()))
    assert {counts[index] for index, label in enumerate(LABELS) if label == 1} <= {2, 3}
    assert max(counts[index] for index, label in enumerate(LABELS) if label in (0, 2)) == 1


def test_every_image_of_a_large_class_comes_up_within_some_epochs():
    batches = sampler()
    seen = set(chain(*(drawn(batches) for _ in range(12))))
    assert seen == set(range(len(LABELS)))


def test_the_order_is_a_function_of_seed_and_epoch_and_no_global_generator():
    one, other = sampler(), sampler()
    first = [drawn(one) for _ in range(3)]
    np.random.seed(5)
    other.set_epoch(2)
    assert drawn(other) == first[2]
    assert first[0] != first[1]
    assert drawn(sampler(seed=2)) != first[0]


def test_an_epoch_is_resumed_at_its_batch():
    whole, rest = sampler(), sampler()
    whole.set_epoch(4)
    rest.set_epoch(4, start_batch=3)
    assert list(rest) == list(whole)[3:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_shares_of_all_processes_make_up_the_batches_of_one(world_size):
    ranks = [sampler(rank=rank, world_size=world_size) for rank in range(world_size)]
    whole = sampler()
    for _ in range(2):
        assert [list(chain(*share)) for share in zip(*ranks, strict=True)] == list(whole)


def test_a_folder_is_sampled_by_its_classes_and_validated_as_it_is(image_folder):
    folder = image_folder({"train/ant": 30, "train/bee": 3, "val/ant": 4, "val/bee": 1, "test/ant": 1, "test/bee": 1})
    train, val, _ = prepare_dataloaders(folder, 8, num_workers=0, image_size=8, sampler="balanced")
    labels = Counter(label for _, batch in train for label in batch.tolist())
    assert sorted(labels.values()) == [16, 17]
    assert Counter(label for _, batch in val for label in batch.tolist()) == {0: 4, 1: 1}


def test_another_word_is_refused(image_folder):
    with pytest.raises(DataError, match="sampler is 'weighted'; it must be 'shuffle' or 'balanced'"):
        prepare_dataloaders(image_folder({"ant": 3, "bee": 3}), sampler="weighted")
