"""Batch sampler: the order of an epoch's samples, and their shares by process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from torch.utils.data import Sampler

from attention_transfer.data.loading.balanced import balanced_order
from attention_transfer.data.loading.unlabelled import UnlabelledOrder

Key = tuple[int, int]
"""(view, index): which view of which sample."""


class EpochBatchSampler(Sampler[list[Key]]):
    """Batches of (view, index) keys whose order is a function of (seed, epoch) alone.

    Every iteration is the next epoch, so a plain loop gets a new order and new views each time. The view is part of
    each key, so that persistent workers need no other notice of the epoch.

    With several processes each global batch of `batch_size` is split in contiguous shares that differ by at most
    one sample. A share may be empty; it is emitted as an empty list, so that all processes take as many steps.

    Args:
        num_samples: samples in the data set.
        batch_size: samples a step, over all processes.
        shuffle: a new order each epoch; False: the order of the data set.
        balance: the label of each sample: with `shuffle`, an epoch has as many samples as before, and as many of each
            class; see `balanced_order`. None: each sample once.
        seed: seed of the orders, at least 0.
        unlabelled: of samples after the first num_samples, of which each batch has some more; None: there are none.
        views: number of different views. The view is the epoch modulo `views`; None: the epoch itself.
        rank: this process, from 0 to world_size - 1.
        world_size: number of processes.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        shuffle: bool,
        balance: Sequence[int] | None = None,
        seed: int = 0,
        unlabelled: UnlabelledOrder | None = None,
        views: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self._balance = None if balance is None else np.asarray(balance, dtype=np.int64)
        self.seed = seed
        self.unlabelled = unlabelled
        self.views = views
        self.rank = rank
        self.world_size = world_size
        self.next_epoch = 0
        self.start_batch = 0
        self._every = (0, 1)

    @property
    def is_balanced(self) -> bool:
        """Whether an epoch has as many samples of each class, instead of each sample once."""
        return self._balance is not None

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Make the next iteration epoch `epoch`, from its batch `start_batch` on; the one after is `epoch + 1`."""
        self.next_epoch = epoch
        self.start_batch = start_batch

    @contextmanager
    def every_nth_batch(self, first: int, step: int) -> Iterator[None]:
        """Iterate over the batches first, first + step, ... of an epoch alone, inside the context."""
        self._every = (first, step)
        try:
            yield
        finally:
            self._every = (0, 1)

    @property
    def has_every_sample(self) -> bool:
        """Whether an epoch has each sample of the data set once."""
        return not self.is_balanced and self.unlabelled is None

    def global_sizes(self) -> list[int]:
        """The number of samples in each batch of a whole epoch, over all processes."""
        sizes = self.labelled_sizes()
        return sizes if self.unlabelled is None else [size + self.unlabelled.beside(size) for size in sizes]

    def labelled_sizes(self) -> list[int]:
        """The number of samples with a label in each batch of a whole epoch, over all processes."""
        return [min(self.batch_size, self.num_samples - first) for first in range(0, self.num_samples, self.batch_size)]

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(range(0, self.num_samples, self.batch_size))

    # A generator, so that an iterator that is never advanced (a DataLoader makes one) does not count as an epoch.
    def __iter__(self) -> Iterator[list[Key]]:
        epoch, start_batch, (skipped, step) = self.next_epoch, self.start_batch, self._every
        self.set_epoch(epoch + 1)
        order = self._order(epoch)
        view = epoch if self.views is None else epoch % self.views
        first_batch = (start_batch + skipped) * self.batch_size
        for first in range(first_batch, self.num_samples, step * self.batch_size):
            batch = order[first : first + self.batch_size]
            yield [(view, index) for index in (*self._share(batch), *self._share(self._unlabelled(epoch, first)))]

    def _unlabelled(self, epoch: int, first: int) -> list[int]:
        """The samples without a label of the batch that begins at the epoch's sample `first`."""
        if self.unlabelled is None:
            return []
        number, sizes = first // self.batch_size, [self.unlabelled.beside(size) for size in self.labelled_sizes()]
        begin = epoch * sum(sizes) + sum(sizes[:number])
        return [self.num_samples + index for index in self.unlabelled.taken(begin, sizes[number])]

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.num_samples))
        # The spawn key separates this stream from the views': SeedSequence((seed, epoch)) equals (seed, epoch, 0).
        entropy = np.random.SeedSequence((self.seed, epoch), spawn_key=(0,))
        generator = np.random.default_rng(entropy)
        if self._balance is not None:
            return balanced_order(self._balance, generator)
        order: list[int] = generator.permutation(self.num_samples).tolist()
        return order

    def _share(self, batch: list[int]) -> list[int]:
        size, larger = divmod(len(batch), self.world_size)
        first = self.rank * size + min(self.rank, larger)
        return batch[first : first + size + (self.rank < larger)]
