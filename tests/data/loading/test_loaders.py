"""From a folder to batches: what prepare_dataloaders promises."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.loading import epoch, load
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data._utils.pin_memory import pin_memory

from attention_transfer.data import Augmentation, Batch, prepare_dataloaders
from attention_transfer.data.loading.loaders import close_loader, prepare_worker
from attention_transfer.errors import DataError


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_unpacks_to_exactly_images_and_labels_and_carries_its_identity(eighty_digits, num_workers):
    train, *_ = load(eighty_digits, num_workers=num_workers, augment=True)
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


def test_pixels_are_those_of_the_file_normalised_with_imagenets_mean_and_std(eighty_digits):
    _, val, _ = load(eighty_digits)
    images, _ = next(iter(val))
    pixels = torch.tensor(np.array(Image.open(val.dataset.source.samples[3].path))).double() / 255
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        torch.testing.assert_close(images[3, channel].double(), (pixels - mean) / std, rtol=0, atol=1e-5)


def test_mean_and_std_can_be_chosen(eighty_digits):
    _, val, _ = load(eighty_digits, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images, _ = next(iter(val))
    assert (images.min(), images.max()) == (0, 1)


def test_images_are_128_pixels_wide_unless_told_otherwise(eighty_digits):
    _, val, _ = prepare_dataloaders(eighty_digits, num_workers=0)
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
def test_with_a_gpu_batches_arrive_pinned_with_their_identity(eighty_digits):
    batch = next(iter(load(eighty_digits, num_workers=1)[0]))
    assert batch.images.is_pinned()
    assert batch.indices.is_pinned()
    assert batch.to("cuda", non_blocking=True).view == 0


def test_the_three_loaders_share_the_classes_and_no_image(eighty_digits):
    loaders = load(eighty_digits)
    paths = [{sample.path for sample in loader.dataset.source.samples} for loader in loaders]
    assert [len(split) for split in paths] == [60, 10, 10]
    assert len(set.union(*paths)) == 80
    for loader in loaders:
        assert loader.dataset.classes == tuple("0123456789")
        assert loader.dataset.class_to_idx["7"] == 7


def test_another_seed_does_not_move_the_test_images(eighty_digits):
    tests = [[sample.path for sample in load(eighty_digits, seed=seed)[2].dataset.source.samples] for seed in (0, 1)]
    other = [sample.path for sample in load(eighty_digits, split_seed=1)[2].dataset.source.samples]
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
    assert any(sample.path.endswith(".gif") for dataset in datasets for sample in dataset.source.samples)
    for dataset in datasets:
        assert torch.stack([image for image, _ in dataset]).isfinite().all()


def test_a_closed_loader_ends_its_workers_and_can_be_iterated_again(eighty_digits):
    train, *_ = load(eighty_digits, num_workers=1)
    epoch(train)
    (worker,) = train._iterator._workers
    close_loader(train)
    worker.join(timeout=120)
    assert not worker.is_alive()
    assert len(epoch(train)[1]) == 60


def test_augmentation_is_what_was_asked_for(eighty_digits):
    nothing = Augmentation(crop_scale=(1.0, 1.0), flip=False, rotation=0.0, color_jitter=0.0)
    augmented = load(eighty_digits, augment=True, augmentation=nothing)[0].dataset
    ignored = load(eighty_digits, augment=False, augmentation=Augmentation())[0].dataset
    plain = load(eighty_digits)[0].dataset
    for index in (0, 30):
        assert torch.equal(augmented[3, index][0], plain[index][0])
        assert torch.equal(ignored[3, index][0], plain[index][0])


def test_a_dataset_works_in_a_loader_of_the_users_own(eighty_digits):
    dataset = load(eighty_digits)[0].dataset
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
def test_a_value_out_of_range_is_named(eighty_digits, settings, message):
    with pytest.raises(DataError, match=message):
        load(eighty_digits, **settings)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        prepare_dataloaders(tmp_path / "nowhere")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_truncated_file_is_a_data_error_with_its_path_out_of_a_worker_too(eighty_digits, tmp_path, num_workers):
    root = shutil.copytree(eighty_digits, tmp_path / "data")
    broken = Path(load(root)[1].dataset.source.samples[3].path)
    broken.write_bytes(broken.read_bytes()[:60])
    _, val, _ = load(root, num_workers=num_workers)
    with pytest.raises(DataError, match=rf"data.3.{broken.name} cannot be read as an image"):
        list(val)
