"""From a folder to batches: what prepare_dataloaders promises."""

from __future__ import annotations

import pickle
import random
import shutil
import signal
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data._utils.pin_memory import pin_memory

from attention_transfer.data import Augmentation, Batch, EpochBatchSampler, prepare_dataloaders
from attention_transfer.data.loaders import close_loader, prepare_worker
from attention_transfer.errors import DataError


@pytest.fixture(scope="module")
def few_digits(digits_folder, tmp_path_factory):
    """The first eight images of each digit: enough for a cut, and quick to read."""
    root = tmp_path_factory.mktemp("few")
    for name in "0123456789":
        (root / name).mkdir()
        for path in sorted((digits_folder / name).iterdir())[:8]:
            (root / name / path.name).write_bytes(path.read_bytes())
    return root


def load(folder, **settings):
    return prepare_dataloaders(folder, **{"batch_size": 16, "num_workers": 0, "image_size": 32} | settings)


def epoch(loader):
    """One epoch as (views, indices, images, labels)."""
    batches = list(loader)
    columns = [torch.cat([getattr(batch, name) for batch in batches]) for name in ("indices", "images", "labels")]
    return [batch.view for batch in batches], *columns


def same(first, second):
    return first[0] == second[0] and all(map(torch.equal, first[1:], second[1:]))


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


# what a batch is


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_unpacks_to_exactly_images_and_labels_and_carries_its_identity(few_digits, num_workers):
    train, *_ = load(few_digits, num_workers=num_workers, augment=True)
    for batch in train:
        images, labels = batch
        assert (images.dtype, images.shape[1:]) == (torch.float32, (3, 32, 32))
        assert (labels.dtype, labels.shape) == (torch.int64, images.shape[:1])
        assert batch.view == 0
        assert batch.indices.dtype == torch.int64
        assert [train.dataset.targets[index] for index in batch.indices] == labels.tolist()
        assert len(batch) == 2
        assert batch[0] is images
        assert batch[-1] is labels


def test_pixels_are_those_of_the_file_normalised_with_imagenets_mean_and_std(few_digits):
    _, val, _ = load(few_digits)
    images, _ = next(iter(val))
    pixels = torch.tensor(np.array(Image.open(val.dataset.samples[3].path))).double() / 255
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        torch.testing.assert_close(images[3, channel].double(), (pixels - mean) / std, rtol=0, atol=1e-5)


def test_mean_and_std_can_be_chosen(few_digits):
    _, val, _ = load(few_digits, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images, _ = next(iter(val))
    assert (images.min(), images.max()) == (0, 1)


def test_images_are_128_pixels_wide_unless_told_otherwise(few_digits):
    _, val, _ = prepare_dataloaders(few_digits, num_workers=0)
    assert next(iter(val)).images.shape[1:] == (3, 128, 128)


def test_pinning_memory_and_moving_to_a_device_keep_the_identity():
    class Pinned(torch.Tensor):
        def pin_memory(self):
            return self + 0

    tensors = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), torch.tensor([5, 7])
    batch = pin_memory(Batch(*(tensor.as_subclass(Pinned) for tensor in tensors), view=3)).to("cpu")
    assert isinstance(batch, Batch)
    assert (batch.indices.tolist(), batch.view) == ([5, 7], 3)
    without_identity = pin_memory(Batch(*(tensor.as_subclass(Pinned) for tensor in tensors[:2]))).to("cpu")
    assert (without_identity.indices, without_identity.view) == (None, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_with_a_gpu_batches_arrive_pinned_with_their_identity(few_digits):
    batch = next(iter(load(few_digits, num_workers=1)[0]))
    assert batch.images.is_pinned()
    assert batch.indices.is_pinned()
    assert batch.to("cuda", non_blocking=True).view == 0


# splits and classes


def test_the_three_loaders_share_the_classes_and_no_image(few_digits):
    loaders = load(few_digits)
    paths = [{sample.path for sample in loader.dataset.samples} for loader in loaders]
    assert [len(split) for split in paths] == [60, 10, 10]
    assert len(set.union(*paths)) == 80
    for loader in loaders:
        assert loader.dataset.classes == tuple("0123456789")
        assert loader.dataset.class_to_idx["7"] == 7


def test_another_seed_does_not_move_the_test_images(few_digits):
    tests = [[sample.path for sample in load(few_digits, seed=seed)[2].dataset.samples] for seed in (0, 1)]
    other = [sample.path for sample in load(few_digits, split_seed=1)[2].dataset.samples]
    assert tests[0] == tests[1] != other


def test_real_photos_without_a_test_folder_are_loaded_as_they_are_shared(photos_folder):
    loaders = prepare_dataloaders(photos_folder, batch_size=8, augment=True, num_workers=0)
    # 245 in train/, of which 15 % of the ants and of the bees become test; val/ stays as it is
    assert [len(loader.dataset) for loader in loaders] == [208, 153, 37]
    for loader in loaders:
        assert loader.dataset.classes == ("ants", "bees")
        images, labels = next(iter(loader))
        assert images.shape == (8, 3, 128, 128)
        assert images.isfinite().all()
        assert labels.shape == (8,)


def test_every_real_photo_and_the_palette_gif_among_them_can_be_decoded(photos_folder):
    datasets = [loader.dataset for loader in prepare_dataloaders(photos_folder, num_workers=0, image_size=8)]
    assert any(sample.path.endswith(".gif") for dataset in datasets for sample in dataset.samples)
    for dataset in datasets:
        assert torch.stack([image for image, _ in dataset]).isfinite().all()


# promise P1: pixels of (seed, view, index) depend on nothing else


def test_workers_change_no_bit_of_any_epoch(few_digits):
    alone, *_ = load(few_digits, augment=True)
    with_workers, *_ = load(few_digits, augment=True, num_workers=2)
    for _ in range(3):
        assert same(epoch(alone), epoch(with_workers))


def test_a_worker_started_by_spawn_changes_no_bit(few_digits):
    alone, val, _ = load(few_digits, augment=True)
    spawned, *_ = load(few_digits, augment=True, num_workers=1)
    spawned.multiprocessing_context = "spawn"
    assert same(epoch(alone), epoch(spawned))
    assert torch.equal(pickle.loads(pickle.dumps(val.dataset))[3][0], val.dataset[3][0])


def test_batch_size_order_and_rank_change_no_pixel(few_digits):
    reference = load(few_digits, augment=True)[0].dataset
    for settings in ({"batch_size": 7}, {"batch_size": 16, "rank": 1, "world_size": 2}):
        train, *_ = load(few_digits, augment=True, **settings)
        train.batch_sampler.set_epoch(4)
        _, indices, images, _ = epoch(train)
        for index, image in zip(indices.tolist(), images, strict=True):
            assert torch.equal(image, reference[4, index][0])


def test_the_seed_decides_order_and_pixels(few_digits):
    first, again, other = (epoch(load(few_digits, augment=True, seed=seed)[0]) for seed in (0, 0, 1))
    assert same(first, again)
    assert not torch.equal(first[1], other[1])
    dataset, of_other_seed = (load(few_digits, augment=True, seed=seed)[0].dataset for seed in (0, 1))
    assert not torch.equal(dataset[0, 5][0], of_other_seed[0, 5][0])
    assert not torch.equal(dataset[0, 5][0], dataset[1, 5][0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_loop_gets_a_fresh_order_and_fresh_views_each_epoch(few_digits, num_workers):
    train, *_ = load(few_digits, augment=True, num_workers=num_workers)
    epochs = [epoch(train) for _ in range(3)]
    assert [views[0] for views, *_ in epochs] == [0, 1, 2]
    orders = [indices for _, indices, *_ in epochs]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])
    by_index = [images[indices.argsort()] for _, indices, images, _ in epochs]
    for first, second in ((0, 1), (1, 2)):
        different = (by_index[first] != by_index[second]).flatten(1).any(dim=1)
        assert different.all()


def test_without_augment_the_order_is_fresh_and_the_pixels_stay(few_digits):
    train, *_ = load(few_digits)
    (views, first, images, _), (_, second, again, _) = epoch(train), epoch(train)
    assert set(views) == {0}
    assert not torch.equal(first, second)
    assert torch.equal(images[first.argsort()], again[second.argsort()])


def test_an_epoch_shows_every_training_image_once(few_digits):
    train, *_ = load(few_digits, batch_size=7)
    assert epoch(train)[1].sort().values.tolist() == list(range(60))


def test_val_and_test_are_never_shuffled_or_augmented(few_digits):
    _, *others = load(few_digits, augment=True)
    for loader in others:
        first, second = epoch(loader), epoch(loader)
        assert first[1].tolist() == list(range(10))
        assert set(first[0]) == {0}
        assert same(first, second)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_iterating_never_draws_from_a_global_generator(few_digits, num_workers):
    train, *_ = load(few_digits, augment=True, num_workers=num_workers)
    before = global_states()
    for _ in range(2):
        epoch(train)
    assert global_states() == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_after_an_epoch_that_was_broken_off_the_next_one_is_whole(few_digits, num_workers):
    train, *_ = load(few_digits, augment=True, num_workers=num_workers)
    for _ in train:
        break
    views, indices, *_ = epoch(train)
    assert set(views) == {1}
    assert indices.sort().values.tolist() == list(range(60))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_epoch_can_be_resumed_at_any_batch(few_digits, num_workers):
    train, *_ = load(few_digits, augment=True, num_workers=num_workers)
    train.batch_sampler.set_epoch(5)
    whole = [batch.indices.tolist() for batch in train]
    train.batch_sampler.set_epoch(5, start_batch=2)
    resumed = list(train)
    assert [batch.indices.tolist() for batch in resumed] == whole[2:]
    assert resumed[0].view == 5
    after = list(train)
    assert len(after) == len(train) == 4
    assert after[0].view == 6


def test_a_closed_loader_ends_its_workers_and_can_be_iterated_again(few_digits):
    train, *_ = load(few_digits, num_workers=1)
    epoch(train)
    (worker,) = train._iterator._workers
    close_loader(train)
    worker.join(timeout=10)
    assert not worker.is_alive()
    assert len(epoch(train)[1]) == 60


def test_augmentation_is_what_was_asked_for(few_digits):
    nothing = Augmentation(crop_scale=(1.0, 1.0), flip=False, rotation=0.0, color_jitter=0.0)
    augmented = load(few_digits, augment=True, augmentation=nothing)[0].dataset
    ignored = load(few_digits, augment=False, augmentation=Augmentation())[0].dataset
    plain = load(few_digits)[0].dataset
    for index in (0, 30):
        assert torch.equal(augmented[3, index][0], plain[index][0])
        assert torch.equal(ignored[3, index][0], plain[index][0])


def test_a_dataset_works_in_a_loader_of_the_users_own(few_digits):
    dataset = load(few_digits)[0].dataset
    image, label = dataset[-1]
    assert (image.shape, label) == ((3, 32, 32), 9)
    with pytest.raises(IndexError):
        dataset[60]
    images, labels = next(iter(DataLoader(Subset(dataset, [0, 59]), batch_size=2)))
    assert images.shape == (2, 3, 32, 32)
    assert labels.tolist() == [0, 9]


class WorkerState(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return signal.getsignal(signal.SIGINT) is signal.SIG_IGN, torch.get_num_threads()


def test_a_worker_leaves_ctrl_c_to_the_main_process_and_uses_one_thread():
    (state,) = DataLoader(WorkerState(), batch_size=None, num_workers=1, worker_init_fn=prepare_worker)
    assert tuple(state) == (True, 1)


# sharing batches between processes


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [33, 34, 48])
def test_the_shares_of_all_ranks_make_up_the_batch_of_one_process(num_samples, world_size):
    def sampler(rank, world_size):
        return EpochBatchSampler(num_samples, 16, shuffle=True, seed=1, rank=rank, world_size=world_size)

    whole = sampler(0, 1)
    ranks = [sampler(rank, world_size) for rank in range(world_size)]
    for _ in range(2):
        shares = list(zip(*ranks, strict=True))
        assert [list(chain(*share)) for share in shares] == list(whole)
        assert all(max(map(len, share)) - min(map(len, share)) <= 1 for share in shares)
        assert [sum(map(len, share)) for share in shares] == whole.global_sizes()


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_rank_without_samples_gets_an_empty_batch_of_the_right_shape(few_digits, world_size):
    settings = {"batch_size": 59, "augment": True, "world_size": world_size}
    epochs = [list(load(few_digits, rank=rank, **settings)[0]) for rank in range(world_size)]
    assert {len(batches) for batches in epochs} == {2}
    assert sorted(len(batches[-1].images) for batches in epochs) == [0] * (world_size - 1) + [1]
    empty = next(batches[-1] for batches in epochs if not len(batches[-1].images))
    assert (empty.images.shape, empty.images.dtype) == ((0, 3, 32, 32), torch.float32)
    assert (empty.labels.shape, empty.labels.dtype) == ((0,), torch.int64)
    assert (empty.indices.shape, empty.indices.dtype) == ((0,), torch.int64)


def test_views_can_be_limited_to_a_cycle():
    sampler = EpochBatchSampler(4, 4, shuffle=True, views=2)
    assert [next(iter(sampler))[0][0] for _ in range(5)] == [0, 1, 0, 1, 0]


# errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"batch_size is 0; it must be an integer of at least 1"),
        ({"batch_size": 2.5}, r"batch_size is 2\.5"),
        ({"batch_size": True}, r"batch_size is True"),
        ({"num_workers": -1}, r"num_workers is -1"),
        ({"image_size": 0}, r"image_size is 0; it must be an integer from 8 to 4096"),
        ({"image_size": 5000}, r"image_size is 5000"),
        ({"seed": -1}, r"seed is -1"),
        ({"split_seed": -1}, r"split_seed is -1"),
        ({"rank": 2, "world_size": 2}, r"rank is 2; it must be an integer from 0 to 1"),
        ({"mean": (0.5,)}, r"mean is \(0\.5,\); it must be three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, r"std is \(0\.5, 0\.0, 0\.5\)"),
    ],
)
def test_a_value_out_of_range_is_named(few_digits, settings, message):
    with pytest.raises(DataError, match=message):
        load(few_digits, **settings)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        prepare_dataloaders(tmp_path / "nowhere")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_file_is_a_data_error_with_its_path_out_of_a_worker_too(few_digits, tmp_path, num_workers):
    root = shutil.copytree(few_digits, tmp_path / "data")
    broken = Path(load(root)[1].dataset.samples[3].path)
    broken.write_bytes(broken.read_bytes()[:60])
    _, val, _ = load(root, num_workers=num_workers)
    with pytest.raises(DataError, match=rf"data.3.{broken.name} cannot be read as an image"):
        list(val)
