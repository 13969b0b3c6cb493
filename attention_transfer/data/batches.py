"""What a data set and a loader hand out: two values to unpack, and the identity that rides along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Example(tuple[Tensor, int]):
    """One image [3, H, W] and its label; a pair that also knows which view of which sample it is."""

    view: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which a pair has no use for

    def __new__(cls, image: Tensor, label: int, *, view: int, index: int) -> Example:
        example = super().__new__(cls, (image, label))
        example.view, example.index = view, index
        return example


# No list and no tuple: a DataLoader that pins memory rebuilds those, and would lose the attributes.
@dataclass(eq=False, slots=True)
class Batch:
    """Images and labels, and which samples they are. Unpacks to exactly `images, labels`.

    Attributes:
        images: float32 [B, 3, H, W], normalised.
        labels: int64 [B].
        indices: int64 [B], positions in the data set; None where the loader does not know them.
        view: the view that all images show; None where it is unknown, or B is 0.

    Example:
        >>> images, labels = Batch(torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 1, 0]))
        >>> images.shape, labels.shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4]))
    """

    images: Tensor
    labels: Tensor
    indices: Tensor | None = None
    view: int | None = None

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, position: int) -> Tensor:
        return (self.images, self.labels)[position]

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the DataLoader calls this where pin_memory is on."""
        indices = None if self.indices is None else self.indices.pin_memory()
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), indices, self.view)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        indices = None if self.indices is None else self.indices.to(device, non_blocking=non_blocking)
        images = self.images.to(device, non_blocking=non_blocking)
        return Batch(images, self.labels.to(device, non_blocking=non_blocking), indices, self.view)


def collate(examples: Sequence[Example], image_size: int) -> Batch:
    """The batch of some examples of one view; of none, images [0, 3, image_size, image_size]."""
    if not examples:
        nothing = torch.empty(0, dtype=torch.int64)
        return Batch(torch.empty(0, 3, image_size, image_size), nothing, nothing.clone())
    images, labels = zip(*examples, strict=True)
    indices = torch.tensor([example.index for example in examples])
    return Batch(torch.stack(images), torch.tensor(labels), indices, examples[0].view)
