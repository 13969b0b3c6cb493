"""From settings to everything that a run needs: loaders, classes, student, teacher."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from attention_transfer.config import Config
from attention_transfer.data.brought import check_loader, classes_of, count_classes, unpack
from attention_transfer.data.dataset import ImageDataset
from attention_transfer.data.keeping import keep_pixels, make_stores, open_stores
from attention_transfer.data.loaders import close_loader, prepare_dataloaders
from attention_transfer.data.sampler import EpochBatchSampler
from attention_transfer.data.views import Augmentation
from attention_transfer.errors import AttentionTransferError, ConfigError, DataError
from attention_transfer.evaluation import check_class_order
from attention_transfer.networks.registry import ModelCard, card_of, create_model
from attention_transfer.teacher.loading import load_teacher_model
from attention_transfer.training.objective import check_equal_class_order, check_equal_heads
from attention_transfer.training.runtime import Runtime
from attention_transfer.training.state import check_can_be_kept, random_state, restore_random_state

logger = logging.getLogger(__name__)

DRAWN_IMAGES = 4

Loader = Iterable[Any]
T = TypeVar("T")


@dataclass
class Loaders:
    """The loaders of a run; `own` are those that this library opened, and closes."""

    train: Loader
    val: Loader | None
    test: Loader | None
    own: list[DataLoader[Any]]

    def close(self) -> None:
        """End the workers of our own loaders."""
        for loader in self.own:
            close_loader(loader)

    def splits(self) -> dict[str, int | None]:
        """The number of images of each split, None where a loader does not tell."""
        return {role: _samples(loader) for role, loader in self.by_role().items()}

    def by_role(self) -> dict[str, Loader]:
        """The loaders that there are, by the name of their split."""
        roles = {"train": self.train, "val": self.val, "test": self.test}
        return {role: loader for role, loader in roles.items() if loader is not None}


def _samples(loader: Loader) -> int | None:
    try:
        return len(loader.dataset)  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        return None


def batches_of(loader: Loader) -> int | None:
    """Batches an epoch; None for a loader that does not tell."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def open_loaders(
    config: Config, runtime: Runtime, train: Loader | None, val: Loader | None, test: Loader | None
) -> Loaders:
    """The loaders that the user brings, and ours over data_dir for those that are missing.

    With a train loader that the user brings, data_dir is not read behind the user's back.

    Raises:
        DataError: a loader that cannot be iterated every epoch, or a data folder that is not what it should be.
    """
    brought = {"train_loader": train, "val_loader": val, "test_loader": test}
    for role, loader in brought.items():
        if loader is not None:
            check_loader(loader, role)
    if train is not None:
        if val is None:
            logger.info("there is no val_loader: the last epoch counts as the best")
        return Loaders(train, val, test, own=[])
    own = open_folder(config, runtime.rank, runtime.world_size)
    chosen = {**own, **{role: loader for role, loader in (("val", val), ("test", test)) if loader is not None}}
    return Loaders(**chosen, own=[loader for role, loader in own.items() if brought[f"{role}_loader"] is None])


def open_folder(config: Config, rank: int = 0, world_size: int = 1) -> dict[str, DataLoader[Any]]:
    """Our loaders over data_dir by the name of their split, as the settings say."""
    loaders = prepare_dataloaders(
        config.data_dir,
        batch_size=config.batch_size,
        augment=config.augment,
        num_workers=config.num_workers,
        image_size=config.image_size,
        seed=config.seed,
        split_seed=config.split_seed,
        mean=config.mean,
        std=config.std,
        augmentation=Augmentation(config.crop_scale, config.flip, config.rotation, config.color_jitter),
        augment_views=config.augment_views,
        augment_seed=config.augment_seed,
        rank=rank,
        world_size=world_size,
    )
    return dict(zip(("train", "val", "test"), loaders, strict=True))


def keep_pixels_of(loaders: Loaders, config: Config, runtime: Runtime) -> None:
    """Decode the images of our own loaders once and for all; every process must call this together.

    Raises:
        CacheError: pixel_cache is 'on', and the pixels cannot be kept.
        DataError: a file cannot be read as an image.
    """
    datasets = [loader.dataset for loader in loaders.own if isinstance(loader.dataset, ImageDataset)]
    if not datasets:
        return
    made = together(runtime, lambda: make_stores(datasets, config) if runtime.is_local_main else None)
    stores = made if runtime.is_local_main else open_stores(datasets, config)

    def keep() -> None:
        if stores is not None:
            keep_pixels(datasets, stores, config, runtime.local_rank, runtime.local_world_size)

    together(runtime, keep)


def together(runtime: Runtime, work: Callable[[], T]) -> T:
    """Do something in every process, and fail in all of them where it fails in one."""
    error: Exception | None = None
    try:
        result = work()
    except (AttentionTransferError, OSError) as raised:
        error = raised
    first = next((each for each in runtime.from_all(error) if each is not None), None)
    if first is not None:
        raise first
    return result


def with_classes(config: Config, loaders: Loaders) -> Config:
    """The configuration with num_classes and class_names filled in.

    They come from the settings, else from `dataset.classes`, else from one pass over the training labels.

    Raises:
        ConfigError: the settings contradict the data set.
        DataError: the data have a single class, or a loader numbers its classes otherwise.
    """
    names = config.class_names or classes_of(loaders.train)
    for loader in loaders.by_role().values():
        check_class_order(names or (), classes_of(loader) or ())
    number = config.num_classes or (len(names) if names else count_classes(loaders.train))
    if number < 2:
        raise DataError(f"the training data have {number} class; a classifier needs at least 2.")
    if names is not None and len(names) != number:
        raise ConfigError(
            f"num_classes is {number}, but the training data have {len(names)} classes ({', '.join(names[:10])}); "
            "leave num_classes out to read it from the data."
        )
    return config.model_copy(
        update={"num_classes": number, "class_names": names or tuple(str(label) for label in range(number))}
    )


def open_student(config: Config, student: nn.Module | None) -> nn.Module:
    """The module that the user brings, or a new network by name, which knows the names of its classes.

    Raises:
        CheckpointError: the state of the user's module could not be kept in a checkpoint.
    """
    if student is not None:
        check_can_be_kept(student)
        return student
    assert config.num_classes is not None
    network = create_model(config.model, config.num_classes, weights=config.weights)
    network.card = ModelCard(config.model, config.num_classes, config.class_names)  # type: ignore[assignment]
    return network


def open_teacher(config: Config, teacher: nn.Module | None, runtime: Runtime) -> nn.Module | None:
    """The module that the user brings, or the one that teacher_model names; checked against the student's classes.

    Raises:
        ConfigError: alpha > 0 without a teacher.
        TeacherError: the teacher cannot be loaded, or alpha > 0 and its classes are not the student's.
    """
    if teacher is None and config.teacher_model is not None:
        teacher = load_teacher_model(
            config.teacher_model, config.num_classes, runtime.device, teacher_arch=config.teacher_arch
        )
    if teacher is None:
        if config.alpha > 0:
            raise ConfigError(
                f"alpha is {config.alpha:g}, but there is no teacher to distil from; set teacher_model, hand over "
                "teacher=..., or set alpha=0."
            )
        logger.info("there is no teacher: the student learns by cross-entropy alone")
        return None
    card = card_of(teacher)
    if config.alpha > 0 and card is not None:
        check_equal_heads(config.num_classes or card.num_classes, card.num_classes)
        check_equal_class_order(config.class_names, card.class_names)
    if config.alpha == 0 and config.beta == 0:
        logger.warning("alpha and beta are 0: the teacher is compared with, but teaches nothing")
    return teacher.to(runtime.device)


def prefer_channels_last(runtime: Runtime, *networks: nn.Module | None) -> None:
    """Lay out weights and images channels-last, which is faster on CPUs and GPUs alike.

    Networks of ours compute the same either way. A module that the user brings may not run so (x.view after a
    convolution raises), so that one of those keeps PyTorch's own layout for the whole run.
    """
    present = [network for network in networks if network is not None]
    if all(card_of(network) is not None for network in present):
        runtime.memory_format = torch.channels_last
        for network in present:
            network.to(memory_format=torch.channels_last)


def has_position(loader: Loader, runtime: Runtime) -> bool:
    """Whether a loader can go on inside an epoch: ours can, where it was made for these processes."""
    sampler = getattr(loader, "batch_sampler", None)
    return isinstance(sampler, EpochBatchSampler) and sampler.world_size == runtime.world_size


def data_digest_of(loader: Loader) -> str | None:
    """SHA-256 of the names and sizes of a loader's images; None where it does not tell them."""
    dataset = getattr(loader, "dataset", None)
    if not isinstance(dataset, ImageDataset):
        return None
    digest = hashlib.sha256()
    for sample in dataset.samples:
        digest.update(f"{sample.relative}\0{sample.size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def images_to_draw(loader: Loader | None) -> Tensor | None:
    """A fixed handful of validation images [B, 3, H, W]; None where nothing validates.

    The position and the random state of the loader stay as they are.
    """
    if loader is None:
        return None
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, ImageDataset):
        step = max(1, len(dataset) // DRAWN_IMAGES)
        return torch.stack([dataset[i][0] for i in range(0, len(dataset), step)][:DRAWN_IMAGES])
    before = random_state()
    raw = next(iter(loader), None)
    restore_random_state(before)
    return None if raw is None else unpack(raw).images[:DRAWN_IMAGES]
