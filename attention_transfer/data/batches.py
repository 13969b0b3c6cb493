"""Examples and batches: pairs of images and labels that also carry the indices of their samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention_transfer.data.frame import ImageSize, as_frame


class Example(tuple[Tensor, int]):
    """One image [3, H, W] and its label; a pair with the attributes `view` and `index` of its sample."""

    view: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which a pair has no use for

    def __new__(cls, image: Tensor, label: int, *, view: int, index: int) -> Example:
        example = super().__new__(cls, (image, label))
        example.view, example.index = view, index
        return example


class Mixing(NamedTuple):
    """The second image that each image of a batch shows, too (mixup, CutMix).

    Attributes:
        labels: int64 [B], of the second images.
        ratios: float32 [B], the share of the first ones, in [0, 1].
    """

    labels: Tensor
    ratios: Tensor


# Neither a list nor a tuple: a DataLoader that pins memory rebuilds those without the attributes.
@dataclass(eq=False, slots=True)
class Batch:
    """Images, labels and the indices of their samples. Unpacks to exactly `images, labels`.

    Attributes:
        images: float32 [B, 3, H, W], normalised.
        labels: int64 [B].
        indices: int64 [B], positions in the data set; None where they are unknown.
        view: the view that all images show; None where it is unknown, or B is 0.
        matrices: float32 [B, 2, 3], from the coordinates of each view to those of the whole image (both from -1 to 1,
            as in torch's affine_grid); None unless they were requested.
        shown: bool [B, H, W], which pixels show something of an image; None where all do, or where it is unknown.
        partner_labels: int64 [B], labels of the second images that mixed images show, where `labels` are those of the
            first; None where none is mixed.
        ratios: float32 [B], the share of the first images; likewise.

    Example:
        >>> images, labels = Batch(torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 1, 0]))
        >>> images.shape, labels.shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4]))
    """

    images: Tensor
    labels: Tensor
    indices: Tensor | None = None
    view: int | None = None
    matrices: Tensor | None = None
    shown: Tensor | None = None
    partner_labels: Tensor | None = None
    ratios: Tensor | None = None

    @property
    def mixing(self) -> Mixing | None:
        """The second images; None where none is mixed."""
        if self.partner_labels is None or self.ratios is None:
            return None
        return Mixing(self.partner_labels, self.ratios)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels))

    def __len__(self) -> int:
        return 2

    def __getitem__(self, position: int) -> Tensor:
        return (self.images, self.labels)[position]

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by a DataLoader with pin_memory."""
        return self._with_each(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device; indices and matrices stay on the CPU, where they are used."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=non_blocking), _OF_PIXELS)

    def own(self) -> Batch:
        """The same batch in this process's own memory.

        A worker sends tensors in shared memory, each of which holds a file open as long as anything refers to it, such
        as a stored exception.
        """
        return self._with_each(lambda tensor: tensor.clone() if _is_shared(tensor) else tensor)

    def part(self, which: slice) -> Batch:
        """Some of the images, with what is known of their pixels and labels, but not of their samples."""
        present = {name: tensor for name in _OF_PIXELS if (tensor := getattr(self, name)) is not None}
        return Batch(**{name: tensor[which] for name, tensor in present.items()})

    def _with_each(self, change: Callable[[Tensor], Tensor], names: Sequence[str] | None = None) -> Batch:
        present = {name: tensor for name in names or _TENSORS if (tensor := getattr(self, name)) is not None}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in present.items()}
        return replace(self, **changed)


_OF_PIXELS = ("images", "labels", "shown", "partner_labels", "ratios")
_TENSORS = (*_OF_PIXELS, "indices", "matrices")


def _is_shared(tensor: Tensor) -> bool:
    # torch reports tensors on a GPU as always shared
    return tensor.device.type == "cpu" and bool(tensor.is_shared())  # type: ignore[no-untyped-call]


class Examples(list[Example]):
    """Examples that were rendered as one batch, which `batch` returns without stacking them again.

    Args:
        images: [B, 3, H, W].
        labels: of each image.
        where: (view, index) of each image.
        matrices: [B, 2, 3], or None.
        shown: bool [B, H, W], or None.
        mixing: the second images, or None.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[int],
        where: Sequence[tuple[int, int]],
        matrices: Tensor | None = None,
        shown: Tensor | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        parts = zip(images, labels, where, strict=True)
        super().__init__(Example(image, label, view=view, index=index) for image, label, (view, index) in parts)
        self.images = images
        self.matrices = matrices
        self.shown = shown
        self.mixing = mixing

    def batch(self) -> Batch:
        """The examples, all of one view, as a batch with images [B, 3, H, W]."""
        labels = torch.tensor([label for _, label in self], dtype=torch.int64)
        indices = torch.tensor([example.index for example in self], dtype=torch.int64)
        view = self[0].view if self else None
        return Batch(self.images, labels, indices, view, self.matrices, self.shown, *(self.mixing or (None, None)))


def collate(examples: Sequence[Example], image_size: ImageSize) -> Batch:
    """The batch of examples of one view, images [B, 3, H, W]; without examples [0, 3, H, W] of image_size."""
    if isinstance(examples, Examples):
        return examples.batch()
    if not examples:
        return Examples(torch.empty(0, 3, *as_frame(image_size).size), [], []).batch()
    images, labels = zip(*examples, strict=True)
    return Examples(torch.stack(images), labels, [(example.view, example.index) for example in examples]).batch()
