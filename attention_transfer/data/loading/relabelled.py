"""A loader whose labels are the numbers that another list gives to the same classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.user_loaders import unpack
from attention_transfer.errors import DataError


class Relabelled:
    """A loader with other labels; in everything else it is the loader that it was made of.

    Args:
        loader: any iterable of (images, labels).
        positions: label i becomes positions[i].
        classes: names of the classes by their new labels.
        role: what messages call the loader.

    Attributes:
        positions: int64, the new label of each old one, for those who look at the labels of the loader's data set.
        classes: as above.
    """

    def __init__(self, loader: Iterable[Any], positions: Sequence[int], classes: Sequence[str], role: str) -> None:
        self.loader = loader
        self.classes = tuple(classes)
        self.positions = torch.tensor(positions, dtype=torch.int64)
        self._role = role

    def __iter__(self) -> Iterator[Batch]:
        """Each batch with its new labels, int64 [B] on the CPU or wherever they were.

        Raises:
            DataError: a label is none of the loader's classes.
        """
        for raw in self.loader:
            batch = raw if isinstance(raw, Batch) else unpack(raw)
            labels = batch.labels.cpu()
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.positions):
                wrong = next(label for label in labels.tolist() if not 0 <= label < len(self.positions))
                raise DataError(
                    f"{self._role} has a label {wrong}, but names {len(self.positions)} classes (labels 0 to "
                    f"{len(self.positions) - 1}); mend its labels or its `dataset.classes`."
                )
            yield replace(batch, labels=self.positions[labels].to(batch.labels.device))

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        # a copy that is being made has no loader yet
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)
