"""Users' loaders: any usual form of batch is unpacked, and others raise an error that says what is wrong."""

from __future__ import annotations

import logging
import operator
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from attention_transfer.data.batches import Batch
from attention_transfer.data.decoding.once import warn_once
from attention_transfer.data.loading.workers import one_pass
from attention_transfer.errors import DataError
from attention_transfer.features.gradients import IGNORED_LABEL as UNLABELLED

logger = logging.getLogger(__name__)

_NAMED = 10
_GREATEST_NORMALISED = 20
_IMAGE_KEYS = ("images", "image", "pixel_values", "x", "input", "inputs")
_LABEL_KEYS = ("labels", "label", "y", "target", "targets")


def unpack(batch: object) -> Batch:
    """Any usual batch as a `Batch`.

    Accepted are a `Batch`, a list or tuple that begins with images and labels, and a dict with images and labels under
    one of the usual names (images, image, pixel_values, x, input; labels, label, y, target).

    Returns:
        images [B, C, H, W] floating-point, labels int64 [B]; indices, view and matrices only if `batch` is a `Batch`.

    Raises:
        DataError: `batch` is something else, its images are not floating-point, or its labels are not one whole
            number an image.
    """
    if isinstance(batch, Batch):
        return replace(batch, labels=_whole_numbers(batch.labels))
    images, labels = _find_pair(batch)
    images, labels = _as_tensor("images", images), _whole_numbers(_as_tensor("labels", labels))
    if images.ndim == 3 and images.is_floating_point() and len(labels) == len(images):
        raise DataError(
            f"The images of a batch are {_describe(images)}; they must be of shape [B, C, H, W]. If they are grey, "
            "give them their one channel: images.unsqueeze(1)."
        )
    if images.ndim != 4 or not images.is_floating_point():
        raise DataError(
            f"The images of a batch are {_describe(images)}; they must be floating-point of shape [B, C, H, W]. "
            "Convert and normalise them in the data set's transform."
        )
    if labels.shape != images.shape[:1]:
        raise DataError(
            f"The labels of a batch are {_describe(labels)} for {len(images)} images; "
            "they must be one class number an image, of shape [B] (no one-hot or mixed labels)."
        )
    return Batch(images, labels)


class Received:
    """The batches of a loader, unpacked and in this process's own memory; errors hold no reference to the loader's.

    Args:
        loader: any iterable of batches.

    Raises:
        DataError: while iterating, from `unpack`.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Batch]:
        return map(_receive, one_pass(self._loader))

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]  # a TypeError where it has no length


def _receive(raw: object) -> Batch:
    try:
        return unpack(raw).own()
    except DataError as error:
        del raw
        chain: BaseException | None = error
        while chain is not None:
            traceback.clear_frames(chain.__traceback__)
            chain = chain.__cause__
        raise


def _find_pair(batch: object) -> tuple[object, object]:
    if isinstance(batch, Mapping):
        image_key = next((key for key in _IMAGE_KEYS if key in batch), None)
        label_key = next((key for key in _LABEL_KEYS if key in batch), None)
        if image_key and label_key:
            return batch[image_key], batch[label_key]
    elif isinstance(batch, list | tuple) and len(batch) >= 2:
        return batch[0], batch[1]
    raise DataError(
        f"A batch is {_describe(batch)}; it must be a pair (images, labels), "
        f"or a dict with one of {', '.join(_IMAGE_KEYS)} and one of {', '.join(_LABEL_KEYS)}."
    )


def lacks_labels(batch: object, names: Sequence[str] = ()) -> bool:
    """Whether a batch holds images and no labels.

    Args:
        batch: of a loader. Without labels are images [B, C, H, W] alone, a dict without a usual key of labels, and
            images with None, with strings (names of files) or with -1 or -100 each, as unlabelled images are marked.
        names: of the classes; a string that is one of them is a label, though one that `unpack` refuses.
    """
    if isinstance(batch, Mapping):
        return any(key in batch for key in _IMAGE_KEYS) and not any(key in batch for key in _LABEL_KEYS)
    if not isinstance(batch, Batch | list | tuple):
        return getattr(batch, "ndim", None) == 4
    if len(batch) < 2:
        return len(batch) == 1 and lacks_labels(batch[0])
    labels = batch[1]
    if isinstance(labels, list | tuple):
        return bool(labels) and all(each is None or (isinstance(each, str) and each not in names) for each in labels)
    return labels is None or (
        isinstance(labels, Tensor)
        and labels.ndim == 1
        and len(labels) > 0
        and any(bool((labels == mark).all()) for mark in (-1, UNLABELLED))
    )


def _as_tensor(name: str, values: object) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"The {name} of a batch are {_describe(values)}, of which no tensor can be made ({error}); "
            "use a collate_fn that stacks them into one tensor."
        ) from error


def _whole_numbers(labels: Tensor) -> Tensor:
    whole = labels.long()
    if (labels.is_floating_point() or labels.is_complex()) and not torch.equal(whole.to(labels.dtype), labels):
        raise DataError(
            f"The labels of a batch are {_describe(labels)} and not whole; "
            "they must be one class number an image (no one-hot or mixed labels)."
        )
    return whole


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(repr, value)) or '(none)'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)} values ({', '.join(type(v).__name__ for v in value[:3])})"
    return f"a {type(value).__name__}"


def check_loader(loader: object, role: str) -> None:
    """Refuse, before training, a loader that could not be iterated every epoch.

    The loader is not iterated, because that would start its workers.

    Args:
        loader: the user's.
        role: its name in the message, as in "train_loader".

    Raises:
        DataError: it ends after one pass (a generator), is a data set, is empty, or cannot be iterated at all.
    """
    remedy = "give a torch DataLoader, a list of batches, or an object of a class with __iter__"
    if isinstance(loader, Iterator):
        raise DataError(f"{role} is a {type(loader).__name__}, which ends after one pass: {remedy}.")
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise DataError(f"{role} is a data set, which gives single images: wrap it in torch's DataLoader.")
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise DataError(f"{role} is a {type(loader).__name__}, which cannot be iterated: {remedy}.")
    if operator.length_hint(loader, 1) == 0:
        raise DataError(f"{role} is empty: give it at least one batch.")


def classes_of(loader: object) -> tuple[str, ...] | None:
    """The names of the classes, by their labels; None if they are unknown.

    They are the loader's own `classes`, else those of its data set, also inside `Subset`s.
    """
    own = _names(getattr(loader, "classes", None))
    if own is not None:
        return own
    dataset: Any = getattr(loader, "dataset", None)
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return _names(getattr(dataset, "classes", None))


def _names(classes: object) -> tuple[str, ...] | None:
    if isinstance(classes, Sequence) and not isinstance(classes, str) and classes:
        return tuple(str(name) for name in classes)
    return None


def count_classes(loader: Iterable[Any]) -> int:
    """The number of classes: one more than the greatest label of one pass over the loader.

    Raises:
        DataError: there is no label, or one is negative or not whole.
    """
    logger.info("the loader does not name its classes; they are counted in one pass over its labels")
    seen: set[int] = set()
    for batch in Received(loader):
        labels = batch.labels[batch.labels != UNLABELLED]
        if not len(labels):
            continue
        if labels.min() < 0:
            raise DataError(f"A batch has the label {int(labels.min())}; labels must be 0 or greater.")
        seen.update(labels.tolist())
    if not seen:
        raise DataError("The loader gives no labels: give it at least one batch that is not empty.")
    _warn_of_classes_without_images(seen)
    return max(seen) + 1


def _warn_of_classes_without_images(seen: set[int]) -> None:
    lowest, highest = min(seen), max(seen)
    missing = [label for label in range(highest) if label not in seen]
    if not missing:
        return
    which = ", ".join(map(str, missing[:_NAMED])) + (f" and {len(missing) - _NAMED} more" if missing[_NAMED:] else "")
    if lowest > 0:
        one = lowest == 1 and highest == len(seen)
        logger.warning(
            "the labels go from %d to %d, so that there are %d classes, of which %s %s no image; %s",
            lowest, highest, highest + 1, which, "have" if len(missing) > 1 else "has",
            f"if the {len(seen)} classes are numbered from 1, give labels - 1" if one
            else "labels are to be numbered from 0",
        )  # fmt: skip
    else:
        logger.warning(
            "the labels go from 0 to %d, so that there are %d classes, but none is %s; number the classes without "
            "gaps, or set num_classes where this is meant",
            highest, highest + 1, which,
        )  # fmt: skip


def warn_of_unusual_values(images: Tensor) -> None:
    """Warn once of images that are neither in [0, 1] nor normalised, such as floating-point pixels from 0 to 255.

    Args:
        images: floating-point [B, C, H, W], such as the first batch.
    """
    if not images.numel():
        return
    low, high = (float(value) for value in torch.aminmax(images))
    is_whole = high > 1 and torch.equal(images, images.round())
    if not (is_whole or low < -_GREATEST_NORMALISED or high > _GREATEST_NORMALISED):
        return
    greatest = next((most for most in (255, 65535) if low >= 0 and high <= most), None)
    remedy = "bring them to [0, 1]" if greatest is None else f"divide them by {greatest}"
    warn_once(
        "image values",
        f"the images have {'whole numbers' if is_whole else 'values'} from {low:.4g} to {high:.4g}, where networks "
        f"expect [0, 1] or normalised values: {remedy} and normalise them in the data set's transform",
    )


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Check that labels [B] are classes of the network, or -100, which marks an image without one.

    Those on a GPU are not checked, as that would stall each step.

    Raises:
        DataError: one is not; the message names it.
    """
    if labels.device.type != "cpu":
        return
    labels = labels[labels != UNLABELLED]
    if not labels.numel():
        return
    lowest, highest = (int(label) for label in torch.aminmax(labels))
    if lowest < 0 or highest >= num_classes:
        from_1 = lowest > 0 and highest == num_classes
        remedy = "if they are numbered from 1, give labels - 1" if from_1 else "mend the labels"
        raise DataError(
            f"a label is {lowest if lowest < 0 else highest}, but the network tells {num_classes} classes apart "
            f"(labels 0 to {num_classes - 1}); {remedy}, or take a network with a logit for each class."
        )


def labelled_part(batch: Batch) -> Batch:
    """The images of a batch that have a label; the batch itself where all have."""
    is_labelled = batch.labels != UNLABELLED
    if bool(is_labelled.all()):
        return batch
    return Batch(batch.images[is_labelled.to(batch.images.device)], batch.labels[is_labelled])
