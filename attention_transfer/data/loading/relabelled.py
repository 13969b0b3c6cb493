"""A loader whose labels are mapped to the order of another list of the same classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.user_loaders import unpack
from attention_transfer.errors import DataError
from attention_transfer.features.gradients import IGNORED_LABEL as UNLABELLED


class Relabelled:
    """A loader with other labels; every other attribute is that of the wrapped loader.

    Args:
        loader: any iterable of (images, labels).
        positions: label i becomes positions[i].
        classes: names of the classes by their new labels.
        role: what messages call the loader.

    Attributes:
        positions: int64 [K], the new label of each old one, to map the labels of the loader's data set.
        classes: names of the classes by their new labels.
    """

    def __init__(self, loader: Iterable[Any], positions: Sequence[int], classes: Sequence[str], role: str) -> None:
        self.loader = loader
        self.classes = tuple(classes)
        self.positions = torch.tensor(positions, dtype=torch.int64)
        self._role = role

    def __iter__(self) -> Iterator[Batch]:
        """Each batch with its new labels, int64 [B], on the device of the old ones.

        Raises:
            DataError: a label is not one of the loader's classes.
        """
        for raw in self.loader:
            batch = raw if isinstance(raw, Batch) else unpack(raw)
            labels = batch.labels.cpu()
            given = labels[labels != UNLABELLED]
            if len(given) and not 0 <= int(given.min()) <= int(given.max()) < len(self.positions):
                wrong = next(label for label in given.tolist() if not 0 <= label < len(self.positions))
                raise DataError(
                    f"{self._role} has a label {wrong}, but names {len(self.positions)} classes (labels 0 to "
                    f"{len(self.positions) - 1}); correct its labels or its `dataset.classes`."
                )
            partners = None if batch.partner_labels is None else self._renumbered(batch.partner_labels)
            yield replace(batch, labels=self._renumbered(batch.labels), partner_labels=partners)

    def _renumbered(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels [B] by their new numbers; those of images without one stay."""
        old = labels.cpu()
        return torch.where(old < 0, old, self.positions[old.clamp_min(0)]).to(labels.device)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # while it is copied or unpickled there is no loader yet
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)
