"""Checks of one batch of every user's loader before training, so that no epoch is lost to a bad one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.loaders import own_dataset, own_sampler
from attention_transfer.data.loading.user_loaders import check_labels, classes_of, lacks_labels, unpack
from attention_transfer.errors import DataError
from attention_transfer.seeding import random_state, restore_random_state
from attention_transfer.training.setup.data.loaders import Loaders

logger = logging.getLogger(__name__)


def look_at_first_batches(loaders: Loaders, names: Sequence[str] = ()) -> dict[str, Batch]:
    """Fetch the first batch of each user's loader; a test loader without labels is logged, and removed from `loaders`.

    Args:
        loaders: of the run; random states of this process and of the loaders are left unchanged.
        names: of the classes, if known; words that are not among them are no labels.

    Returns:
        the batches by split.

    Raises:
        DataError: a loader gives no batch, or one that is not as `unpack` takes it; names the loader.
    """
    batches: dict[str, Batch] = {}
    for split, loader in loaders.by_role().items():
        if own_dataset(loader) is not None and own_sampler(loader) is not None:
            continue  # ours have labels, and their sampler counts epochs
        role = f"{split}_loader"
        raw = fetch_first(loader, role)
        if split == "test" and lacks_labels(raw, names):
            logger.warning("the batches of test_loader have no labels: there will be no test results")
            loaders.test = None
            continue
        with _naming(role):
            batches[split] = unpack(raw).own()
    return batches


def check_first_labels(batches: Mapping[str, Batch], loaders: Loaders, num_classes: int) -> None:
    """Check that numeric labels are below the number of classes.

    Args:
        batches: the first ones, by split.
        loaders: their loaders; those with class names are matched by name instead.
        num_classes: K.

    Raises:
        DataError: names the loader and the label.
    """
    for split, loader in loaders.by_role().items():
        if split in batches and classes_of(loader) is None:
            with _naming(f"{split}_loader"):
                check_labels(batches[split].labels, num_classes)


def fetch_first(loader: Iterable[Any], role: str) -> object:
    """The first batch of a loader, as it is; iteration ends there, and random states and workers are left unchanged.

    Args:
        loader: can be iterated again.
        role: its name in messages.

    Raises:
        DataError: it gives no batch.
    """
    with _undisturbed(loader), _noting(role), ExitStack() as cleanup:
        iterator = iter(loader)
        cleanup.callback(_end, iterator, loader)
        for batch in iterator:
            return batch
    raise DataError(f"{role} gives no batch; give it at least one.")


@contextmanager
def _undisturbed(loader: Iterable[Any]) -> Iterator[None]:
    """Restore the global random generators and the loader's own afterwards."""
    before, own = random_state(), [(generator, generator.get_state()) for generator in _generators_of(loader)]
    try:
        yield
    finally:
        restore_random_state(before)
        for generator, state in own:
            generator.set_state(state)


def _generators_of(loader: Iterable[Any]) -> list[torch.Generator]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, batch_sampler, getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return [each for each in found if isinstance(each, torch.Generator)]


def _end(iterator: Iterator[Any], loader: Iterable[Any]) -> None:
    """End iteration now, rather than when the last reference to it is gone."""
    if isinstance(loader, DataLoader):
        # persistent workers end too: new ones draw what they would have drawn without this pass
        loader._iterator = None
    for end in ("_shutdown_workers", "close"):
        getattr(iterator, end, lambda: None)()


@contextmanager
def _noting(role: str) -> Iterator[None]:
    """Add a note to an error of the user's own code: when it was raised."""
    try:
        yield
    except Exception as error:
        error.add_note(f"This was the first batch of {role}, which is looked at before training.")
        raise


@contextmanager
def _naming(role: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{role}: {error}") from error
