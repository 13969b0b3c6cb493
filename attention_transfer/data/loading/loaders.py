"""From a folder of images to the three loaders of a run."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from attention_transfer.config import IMAGENET_MEAN, IMAGENET_STD, Config
from attention_transfer.data.batches import Example, collate
from attention_transfer.data.dataset import ImageDataset
from attention_transfer.data.decoding.depth import Range
from attention_transfer.data.decoding.images import Triple
from attention_transfer.data.decoding.once import warn_anew
from attention_transfer.data.decoding.pixel_range import checked_range, choose_pixel_range
from attention_transfer.data.frame import CROP_PCT, ImageSize, Resize
from attention_transfer.data.loading.cores import available_cores
from attention_transfer.data.loading.options import LoaderOptions, check_integer, three_numbers
from attention_transfer.data.loading.reimport import end_if_imported_again
from attention_transfer.data.loading.sampler import EpochBatchSampler
from attention_transfer.data.loading.workers import end_workers, prepare_worker
from attention_transfer.data.sources.base import Sample, Source
from attention_transfer.data.sources.files import FileSource
from attention_transfer.data.sources.folder import find_splits
from attention_transfer.data.sources.split_cut import CutFraction
from attention_transfer.data.sources.unlabelled import WithUnlabelled, find_unlabelled
from attention_transfer.data.views import Augmentation
from attention_transfer.errors import DataError
from attention_transfer.logs import log_once

logger = logging.getLogger(__name__)


def prepare_dataloaders(
    data_dir: str | os.PathLike[str],
    batch_size: int = 32,
    augment: bool = False,
    num_workers: int = 4,
    *,
    image_size: ImageSize = 128,
    seed: int = 0,
    split_seed: int = 0,
    val_fraction: CutFraction = "auto",
    test_fraction: CutFraction = "auto",
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
    augmentation: Augmentation | None = None,
    augment_views: int | Literal["warp"] | None = None,
    augment_seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool | None = None,
    pixel_range: Literal["auto"] | Range = "auto",
    sampler: Literal["shuffle", "balanced"] = "shuffle",
    resize: Resize = "squash",
    crop_pct: float = CROP_PCT,
    mask_rotation: bool = False,
    unlabelled_dir: str | os.PathLike[str] | None = None,
    unlabelled_ratio: float = 1.0,
) -> tuple[DataLoader[Example], DataLoader[Example], DataLoader[Example] | None]:
    """The (train, val, test) loaders of an image folder.

    `for images, labels in loader` gives normalised float32 images [B, 3, H, W] of image_size and int64 labels
    [B]. Each batch is a `Batch`, which also carries `indices` and `view`. Iterating train gives a new order
    each time, and with `augment` new views. Orders and pixels are functions of the arguments and of the epoch:
    never of the workers, the batch size or a global random generator, none of which is drawn from.

    Args:
        data_dir: train/, val/ and test/ folders of class folders, or class folders; see `find_splits` for other names
            of the folders, how a missing split is cut, and when test is empty.
        batch_size: images a step, over all processes.
        augment: give random views of the training images instead of the whole images.
        num_workers: processes that load images, for each loader; they stay alive between epochs. At most one
            for each core that this process may use.
        image_size: side of the images in pixels, from 8 to 4096, or (height, width).
        seed: seed of the orders.
        split_seed: seed of the cut of a missing val or test.
        val_fraction, test_fraction: how much is cut; 'auto': 0.15, but at most about 10,000 images. A test_fraction of
            0 where test is missing: there is no test loader, but None.
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, of pixels in [0, 1].
        augmentation: how far a view may differ from the whole image, if `augment`; None: the defaults.
        augment_views: None: new views each epoch; K: the views of epoch modulo K; 'warp': new ones each epoch, and
            each batch carries the `matrices` of its views.
        augment_seed: seed of the views.
        rank: this process, from 0 to world_size - 1.
        world_size: number of processes that share each batch of train and val. The test split is whole in each of
            them, for one process to evaluate.
        pin_memory: page-locked batches for a faster copy to a GPU; None: if there is a CUDA GPU.
        pixel_range: the values from black to white of files of more than 8 bits; 'auto' finds one range for all splits
            on a sample of the training files, see `choose_pixel_range`.
        sampler: 'shuffle' gives each training image once an epoch; 'balanced' as many images of each class, and as
            many in all, see `balanced_order`.
        resize: how an image fills image_size: 'squash', 'crop' or 'pad'; see `Frame`. Views are of what the frame shows
            of an image.
        crop_pct: the share of the shorter side that 'crop' shows.
        mask_rotation: whether batches tell which corners a rotation has emptied, so that attention is not compared
            there; they always do where anything else may leave a part of a view empty.
        unlabelled_dir: any tree of images, of which each training batch has some more, labelled -100; None: none.
        unlabelled_ratio: unlabelled images to each labelled one of a batch.

    Raises:
        DataError: a value is out of range, or the folder is not what `find_splits` expects. While iterating: a
            file cannot be read as an image, from a worker process too.

    Example:
        train, val, test = prepare_dataloaders("photos", batch_size=64, augment=True)
        for images, labels in train:
            ...
    """
    end_if_imported_again()
    options = LoaderOptions(
        batch_size=batch_size,
        augment=augment,
        num_workers=num_workers,
        image_size=image_size,
        seed=seed,
        mean=mean,
        std=std,
        augmentation=augmentation,
        augment_views=augment_views,
        augment_seed=augment_seed,
        rank=rank,
        world_size=world_size,
        pin_memory=pin_memory,
        sampler=sampler,
        resize=resize,
        crop_pct=crop_pct,
        mask_rotation=mask_rotation,
        unlabelled_ratio=unlabelled_ratio,
    )
    check_integer("split_seed", split_seed, 0)
    chosen_range = checked_range(pixel_range)
    splits = find_splits(data_dir, split_seed, val_fraction=val_fraction, test_fraction=test_fraction)
    warn_anew()
    found_range = choose_pixel_range(splits.train, (splits.val, splits.test), chosen_range)
    sources: list[Source] = [FileSource(samples, splits.classes) for samples in (splits.train, splits.val, splits.test)]
    if unlabelled_dir is not None:
        sources[0] = WithUnlabelled(sources[0], FileSource(find_unlabelled(unlabelled_dir), splits.classes))
    train, val, test = (
        _loader_of(source, role, options, found_range)
        for source, role in zip(sources, ("train", "val", "test"), strict=True)
    )
    return train, val, test if splits.is_tested else None


def source_loaders(
    train: Source,
    val: Source | None = None,
    test: Source | None = None,
    options: LoaderOptions | None = None,
    *,
    pixel_range: Range | None = None,
) -> tuple[DataLoader[Example], DataLoader[Example] | None, DataLoader[Example] | None]:
    """The (train, val, test) loaders of a user's own sources, equivalent to those of `prepare_dataloaders`.

    Args:
        train: the training images.
        val: the validation images, of the same classes; None: no loader.
        test: the test images, of the same classes; None: no loader.
        options: how they are loaded; None: the defaults.
        pixel_range: the values from black to white of images of more than 8 bits; None: 0 to 65,535.

    Raises:
        DataError: a source lacks a member of `Source`, or its labels do not fit its images or classes.
    """
    options = options or LoaderOptions()
    for role, source in (("train", train), ("val", val), ("test", test)):
        if source is not None:
            _check_source(role, source)
    loaders = [
        None if source is None else _loader_of(source, role, options, pixel_range)
        for source, role in ((train, "train"), (val, "val"), (test, "test"))
    ]
    assert loaders[0] is not None
    return loaders[0], loaders[1], loaders[2]


def _check_source(role: str, source: Source) -> None:
    if not isinstance(source, Source):
        raise DataError(f"{role} is a {type(source).__name__}, which lacks something of attention_transfer.Source.")
    if len(source.labels) != len(source):
        raise DataError(f"{role} has {len(source)} images and {len(source.labels)} labels; give one of each.")
    bad = next((label for label in source.labels if not 0 <= label < len(source.classes)), None)
    if bad is not None:
        raise DataError(f"{role} has the label {bad}, but {len(source.classes)} classes; labels begin at 0.")


def _loader_of(source: Source, role: str, options: LoaderOptions, pixel_range: Range | None) -> DataLoader[Example]:
    """The loader of one split; val and test give whole images in order, and test is not split over processes."""
    is_training, is_test = role == "train", role == "test"
    augmentation = (options.augmentation or Augmentation()) if options.augment and is_training else None
    dataset = ImageDataset(
        source,
        options.image_size,
        mean=three_numbers("mean", options.mean),
        std=three_numbers("std", options.std),
        augmentation=augmentation,
        seed=options.augment_seed,
        tells_matrices=options.augment_views == "warp",
        pixel_range=pixel_range,
        resize=options.resize,
        crop_pct=options.crop_pct,
        mask_rotation=options.mask_rotation,
    )
    repeated = options.augment_views if isinstance(options.augment_views, int) else None
    labelled = dataset.num_labelled
    batches = EpochBatchSampler(
        labelled,
        options.batch_size,
        shuffle=is_training,
        balance=dataset.targets[:labelled] if is_training and options.sampler == "balanced" else None,
        unlabelled=options.order_of_unlabelled(len(dataset) - labelled),
        seed=options.seed,
        views=1 if augmentation is None else repeated,
        rank=0 if is_test else options.rank,
        world_size=1 if is_test else options.world_size,
    )
    return _loader(dataset, batches, _workers(options.num_workers), options.pin_memory)


def _workers(wanted: int) -> int:
    workers = min(wanted, available_cores())
    if workers < wanted:
        log_once(f"num_workers is {wanted}: cut to {workers}, the cores that this process may use")
    return workers


def open_images(
    samples: Sequence[Sample],
    classes: Sequence[str],
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    image_size: ImageSize = 128,
    mean: Triple = IMAGENET_MEAN,
    std: Triple = IMAGENET_STD,
    pixel_range: Literal["auto"] | Range = "auto",
    resize: Resize = "squash",
    crop_pct: float = CROP_PCT,
) -> DataLoader[Example]:
    """A loader of whole images in their order, for evaluation.

    Args:
        samples: the images.
        classes: names of their classes.
        batch_size, num_workers, image_size, mean, std, pixel_range, resize, crop_pct: as in `prepare_dataloaders`.
    """
    found = choose_pixel_range(samples, (), checked_range(pixel_range))
    mean, std = three_numbers("mean", mean), three_numbers("std", std)
    dataset = ImageDataset(
        FileSource(samples, classes),
        image_size,
        mean=mean,
        std=std,
        pixel_range=found,
        resize=resize,
        crop_pct=crop_pct,
    )
    batches = EpochBatchSampler(len(dataset), batch_size, shuffle=False, views=1)
    # evaluation waits for each copy; pinning would open a context on a GPU that may be another than the network's
    return _loader(dataset, batches, _workers(num_workers), False)


def _loader(
    dataset: ImageDataset, batches: EpochBatchSampler, num_workers: int, pin_memory: bool | None
) -> DataLoader[Example]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=functools.partial(collate, image_size=dataset.image_size),
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        worker_init_fn=prepare_worker,
        persistent_workers=num_workers > 0,
        # A DataLoader without a generator of its own draws its workers' seed from torch's global one.
        generator=torch.Generator().manual_seed(dataset.seed),
    )


def close_loader(loader: DataLoader[Example]) -> None:
    """End the workers of a loader now instead of at garbage collection; it can be iterated again."""
    # Persistent workers live as long as the iterator that the DataLoader holds.
    batches, loader._iterator = loader._iterator, None
    end_workers(batches)


def own_sampler(loader: object, world_size: int | None = None) -> EpochBatchSampler | None:
    """The sampler of a loader of ours; None for any other loader.

    Its batches carry the view and index of each image, and it can start inside an epoch.

    Args:
        loader: any.
        world_size: the number of processes that it must have been made for; None: any number.
    """
    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(sampler, EpochBatchSampler):
        return None
    return sampler if world_size in (None, sampler.world_size) else None


def own_dataset(loader: object) -> ImageDataset | None:
    """The data set of a loader of ours; None for any other loader."""
    dataset = getattr(loader, "dataset", None)
    return dataset if isinstance(dataset, ImageDataset) else None


def image_settings(config: Config) -> dict[str, Any]:
    """The settings by which images are read and brought into batches, as `open_images` takes them."""
    keys = ("batch_size", "num_workers", "image_size", "resize", "crop_pct", "mean", "std", "pixel_range")
    return {key: getattr(config, key) for key in keys}
