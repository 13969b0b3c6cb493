"""Samples as a PyTorch data set of views."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch.utils.data import Dataset

from attention_transfer.config import IMAGENET_MEAN, IMAGENET_STD
from attention_transfer.data.batches import Example
from attention_transfer.data.folder import Sample
from attention_transfer.data.images import Triple, decode_image, resize_whole, to_tensor
from attention_transfer.data.sampler import Key
from attention_transfer.data.views import Augmentation, apply_view, draw_view, mean_colour


class ImageDataset(Dataset[Example]):
    """Images and labels by position, or by (view, position).

    `dataset[index]` is `dataset[0, index]`. Without an augmentation every view is the whole image; with one, the
    pixels are a function of (seed, view, index). It holds no open file and no generator, so it can be sent to
    worker processes under any start method.

    Attributes:
        samples: the files; classes: names of the classes; class_to_idx: their labels; targets: label of each sample.

    Raises:
        DataError: on access, if the file cannot be read as an image.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: Sequence[str],
        image_size: int = 128,
        *,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.samples = tuple(samples)
        self.classes = tuple(classes)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.targets = [sample.label for sample in self.samples]
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | Key) -> Example:
        view, position = key if isinstance(key, tuple) else (0, key)
        index = range(len(self.samples))[position]
        image = to_tensor(self.picture(view, index), self.mean, self.std)
        return Example(image, self.targets[index], view=view, index=index)

    def picture(self, view: int, index: int) -> Image.Image:
        """The view as an RGB image of image_size x image_size pixels, before normalisation."""
        image = decode_image(self.samples[index].path)
        if self.augmentation is None:
            return resize_whole(image, self.image_size)
        parameters = draw_view(self.augmentation, self.seed, view, index)
        return apply_view(image, parameters, self.image_size, mean_colour(self.mean))
