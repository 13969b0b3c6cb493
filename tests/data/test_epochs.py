"""The order, the views and the shares of an epoch: functions of seed and epoch alone."""

from __future__ import annotations

import pickle
from itertools import chain

import pytest
import torch
from support.loading import epoch, global_states, load, same

from attention_transfer.data import EpochBatchSampler


def test_workers_change_no_bit_of_any_epoch(eighty_digits):
    alone, *_ = load(eighty_digits, augment=True)
    with_workers, *_ = load(eighty_digits, augment=True, num_workers=2)
    for _ in range(3):
        assert same(epoch(alone), epoch(with_workers))


@pytest.mark.slow
def test_a_worker_started_by_spawn_changes_no_bit(eighty_digits):
    alone, val, _ = load(eighty_digits, augment=True)
    spawned, *_ = load(eighty_digits, augment=True, num_workers=1)
    spawned.multiprocessing_context = "spawn"
    assert same(epoch(alone), epoch(spawned))
    assert torch.equal(pickle.loads(pickle.dumps(val.dataset))[3][0], val.dataset[3][0])


def test_batch_size_order_and_rank_change_no_pixel(eighty_digits):
    reference = load(eighty_digits, augment=True)[0].dataset
    for settings in ({"batch_size": 7}, {"batch_size": 16, "rank": 1, "world_size": 2}):
        train, *_ = load(eighty_digits, augment=True, **settings)
        train.batch_sampler.set_epoch(4)
        _, indices, images, _ = epoch(train)
        for index, image in zip(indices.tolist(), images, strict=True):
            assert torch.equal(image, reference[4, index][0])


def test_the_seed_decides_the_order_and_augment_seed_the_pixels(eighty_digits):
    first, again, other = (epoch(load(eighty_digits, augment=True, seed=seed)[0]) for seed in (0, 0, 1))
    assert same(first, again)
    assert not torch.equal(first[1], other[1])
    of_each = [load(eighty_digits, augment=True, augment_seed=seed)[0] for seed in (0, 1)]
    assert torch.equal(epoch(of_each[0])[1], epoch(of_each[1])[1])
    assert not torch.equal(of_each[0].dataset[0, 5][0], of_each[1].dataset[0, 5][0])
    assert not torch.equal(of_each[0].dataset[0, 5][0], of_each[0].dataset[1, 5][0])
    same_seed = load(eighty_digits, augment=True, seed=1)[0]
    assert torch.equal(of_each[0].dataset[0, 5][0], same_seed.dataset[0, 5][0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_loop_gets_a_fresh_order_and_fresh_views_each_epoch(eighty_digits, num_workers):
    train, *_ = load(eighty_digits, augment=True, num_workers=num_workers)
    epochs = [epoch(train) for _ in range(3)]
    assert [views[0] for views, *_ in epochs] == [0, 1, 2]
    orders = [indices for _, indices, *_ in epochs]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])
    by_index = [images[indices.argsort()] for _, indices, images, _ in epochs]
    for first, second in ((0, 1), (1, 2)):
        different = (by_index[first] != by_index[second]).flatten(1).any(dim=1)
        assert different.all()


def test_without_augment_the_order_is_fresh_and_the_pixels_stay(eighty_digits):
    train, *_ = load(eighty_digits)
    (views, first, images, _), (_, second, again, _) = epoch(train), epoch(train)
    assert set(views) == {0}
    assert not torch.equal(first, second)
    assert torch.equal(images[first.argsort()], again[second.argsort()])


def test_an_epoch_shows_every_training_image_once(eighty_digits):
    train, *_ = load(eighty_digits, batch_size=7)
    assert epoch(train)[1].sort().values.tolist() == list(range(60))


def test_val_and_test_are_never_shuffled_or_augmented(eighty_digits):
    _, *others = load(eighty_digits, augment=True)
    for loader in others:
        first, second = epoch(loader), epoch(loader)
        assert first[1].tolist() == list(range(10))
        assert set(first[0]) == {0}
        assert same(first, second)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_iterating_never_draws_from_a_global_generator(eighty_digits, num_workers):
    train, *_ = load(eighty_digits, augment=True, num_workers=num_workers)
    before = global_states()
    for _ in range(2):
        epoch(train)
    assert global_states() == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_after_an_epoch_that_was_broken_off_the_next_one_is_whole(eighty_digits, num_workers):
    train, *_ = load(eighty_digits, augment=True, num_workers=num_workers)
    for _ in train:
        break
    views, indices, *_ = epoch(train)
    assert set(views) == {1}
    assert indices.sort().values.tolist() == list(range(60))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_can_be_resumed_at_any_batch(eighty_digits, num_workers):
    train, *_ = load(eighty_digits, augment=True, num_workers=num_workers)
    train.batch_sampler.set_epoch(5)
    whole = [batch.indices.tolist() for batch in train]
    train.batch_sampler.set_epoch(5, start_batch=2)
    resumed = list(train)
    assert [batch.indices.tolist() for batch in resumed] == whole[2:]
    assert resumed[0].view == 5
    after = list(train)
    assert len(after) == len(train) == 4
    assert after[0].view == 6


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [33, 34, 48])
def test_the_shares_of_all_ranks_make_up_the_batch_of_one_process(num_samples, world_size):
    def sampler(rank, world_size):
        return EpochBatchSampler(num_samples, 16, shuffle=True, seed=1, rank=rank, world_size=world_size)

    whole = sampler(0, 1)
    ranks = [sampler(rank, world_size) for rank in range(world_size)]
    for _ in range(2):
        local_batches = list(zip(*ranks, strict=True))
        assert [list(chain(*share)) for share in local_batches] == list(whole)
        assert all(max(map(len, share)) - min(map(len, share)) <= 1 for share in local_batches)
        assert [sum(map(len, share)) for share in local_batches] == whole.global_sizes()


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_rank_without_samples_gets_an_empty_batch_of_the_right_shape(eighty_digits, world_size):
    settings = {"batch_size": 59, "augment": True, "world_size": world_size}
    epochs = [list(load(eighty_digits, rank=rank, **settings)[0]) for rank in range(world_size)]
    assert {len(batches) for batches in epochs} == {2}
    assert sorted(len(batches[-1].images) for batches in epochs) == [0] * (world_size - 1) + [1]
    empty = next(batches[-1] for batches in epochs if not len(batches[-1].images))
    assert (empty.images.shape, empty.images.dtype) == ((0, 3, 32, 32), torch.float32)
    assert (empty.labels.shape, empty.labels.dtype) == ((0,), torch.int64)
    assert (empty.indices.shape, empty.indices.dtype) == ((0,), torch.int64)


def test_views_can_be_limited_to_a_cycle():
    sampler = EpochBatchSampler(4, 4, shuffle=True, views=2)
    assert [next(iter(sampler))[0][0] for _ in range(5)] == [0, 1, 0, 1, 0]
