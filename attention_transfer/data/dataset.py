"""A PyTorch data set of augmented views or whole images of a source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from attention_transfer.config import IMAGENET_MEAN, IMAGENET_STD
from attention_transfer.data.augmentation.mixing import draw_mix, mixed, mixed_shown
from attention_transfer.data.batches import Example, Examples, Mixing
from attention_transfer.data.decoding.decoder import Decoder, Picture
from attention_transfer.data.decoding.depth import Range
from attention_transfer.data.decoding.file import NamedBytes
from attention_transfer.data.decoding.images import Triple
from attention_transfer.data.frame import CROP_PCT, ImageSize, Resize, as_frame
from attention_transfer.data.loading.sampler import Key
from attention_transfer.data.pixel_store import PixelStore
from attention_transfer.data.rendering import Rendered, rendered_views, rendered_whole, view_matrices
from attention_transfer.data.sources.base import Source
from attention_transfer.data.views import Augmentation, ViewParameters, draw_view, draw_views


class ImageDataset(Dataset[Example]):
    """Images and labels by position, or by (view, position), one at a time or a batch at once.

    `dataset[index]` is `dataset[0, index]`. Without an augmentation every view is the whole image; with one, the
    pixels are a function of (seed, view, index). It can be pickled and sent to worker
    processes under any start method: it holds no generator, and open files are reopened by their path.

    Args:
        source: of the images.
        image_size: side of the images in pixels, or (height, width).
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, of pixels in [0, 1].
        augmentation: how far a view may differ from the whole image; None: views are whole images.
        seed: of the views.
        tells_matrices: whether batches carry the matrix of each view.
        pixel_range: the values from black to white of files of more than 8 bits; None: see `decode_image`.
        resize: how an image fills image_size: 'squash', 'crop' or 'pad'; see `Frame`.
        crop_pct: the share of the shorter side that 'crop' shows.
        mask_rotation: whether the corners that a rotation empties count as showing no image. All that is empty does
            where resize, pad-and-crop, erasing or TrivialAugment leave something empty.

    Attributes:
        frame: what image_size, resize and crop_pct come to.
        source: holds the images; classes: names of the classes; class_to_idx: their labels; targets: label of each.
        num_labelled: images that have a label; they come first, and those with label -100 after them.
        decoder: from a file to the picture that views are rendered from.
        store: the cached pictures; None: they are decoded each time.

    Raises:
        DataError: on access, if the file cannot be read as an image.
    """

    def __init__(
        self,
        source: Source,
        image_size: ImageSize = 128,
        *,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        tells_matrices: bool = False,
        pixel_range: Range | None = None,
        resize: Resize = "squash",
        crop_pct: float = CROP_PCT,
        mask_rotation: bool = False,
    ) -> None:
        self.source = source
        self.classes = tuple(source.classes)
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.targets = [int(label) for label in source.labels]
        self.num_labelled = sum(label >= 0 for label in self.targets)
        self.frame = as_frame(image_size, resize, crop_pct)
        self.mean = mean
        self.std = std
        self.augmentation = augmentation
        self.seed = seed
        self.tells_matrices = tells_matrices
        self.mask_rotation = mask_rotation
        self.decoder = Decoder(self.frame, augmentation, pixel_range)
        self.store: PixelStore | None = None

    @property
    def image_size(self) -> ImageSize:
        """The side of the images in pixels where they are squares, else (height, width)."""
        return self.frame.image_size

    @property
    def tells_shown(self) -> bool:
        """Whether batches carry which pixels show something of an image."""
        of_views = self.augmentation is not None and (self.mask_rotation or self.augmentation.empties)
        return of_views or not self.frame.is_filled

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, key: int | Key) -> Example:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | Key]) -> Examples:
        """A batch of views at once; the DataLoader calls this method if there is one."""
        pairs = [key if isinstance(key, tuple) else (0, key) for key in keys]
        positions = range(len(self))
        where = [(view, positions[position]) for view, position in pairs]
        labels = [self.targets[index] for _, index in where]
        rendered, matrices = self._render(where)
        examples = Examples(rendered.images, labels, where, matrices, rendered.shown if self.tells_shown else None)
        return self._mixed(examples, where) if self.augmentation is not None and self.augmentation.mixes else examples

    def _mixed(self, examples: Examples, where: Sequence[Key]) -> Examples:
        """Views mixed with those of other images."""
        assert self.augmentation is not None
        alphas, size = (self.augmentation.mixup, self.augmentation.cutmix), self.frame.size
        mixes = [draw_mix(alphas, self.seed, view, index, self._alike(index), size) for view, index in where]
        others, _ = self._render([(view, mix.partner) for (view, _), mix in zip(where, mixes, strict=True)])
        shown = examples.shown
        if shown is not None and others.shown is not None:
            shown = mixed_shown(shown, others.shown, mixes)
        mixing = Mixing(
            torch.tensor([self.targets[mix.partner] for mix in mixes], dtype=torch.int64),
            torch.tensor([mix.ratio for mix in mixes], dtype=torch.float32),
        )
        images, labels = mixed(examples.images, others.images, mixes), [label for _, label in examples]
        return Examples(images, labels, where, examples.matrices, shown, mixing)

    def _alike(self, index: int) -> range:
        """The labelled images for a labelled one, else the others."""
        return range(self.num_labelled) if index < self.num_labelled else range(self.num_labelled, len(self))

    def digest(self, *, hash_files: bool = False) -> str:
        """A digest that identifies the images in later runs; see `Source.fingerprint`."""
        return self.source.fingerprint("content" if hash_files else "size and time")

    def whole(self, indices: Sequence[int]) -> Tensor:
        """Whole images [B, 3, H, W], not augmented."""
        return self._whole(indices).images

    def _whole(self, indices: Sequence[int]) -> Rendered:
        pictures = [self.picture(index) for index in indices]
        return rendered_whole(pictures, self.decoder.frame_of_pictures, self.mean, self.std)

    def _render(self, where: Sequence[Key]) -> tuple[Rendered, Tensor | None]:
        if self.augmentation is None or not where:
            return self._whole([index for _, index in where]), None
        views = self._views(where)
        pictures = [self.picture(index) for _, index in where]
        rendered = rendered_views(pictures, views, self.frame, self.mean, self.std)
        return rendered, view_matrices(views, self.frame) if self.tells_matrices else None

    def _views(self, where: Sequence[Key]) -> list[ViewParameters]:
        assert self.augmentation is not None
        if len({view for view, _ in where}) == 1:
            return draw_views(self.augmentation, self.seed, where[0][0], [index for _, index in where])
        return [draw_view(self.augmentation, self.seed, view, index) for view, index in where]

    def picture(self, index: int) -> Picture:
        """The decoded image that views are rendered from: uint8 [H, W, 3]; from the cache, if it is there."""
        cached = self.store.picture(index) if self.store is not None else None
        if cached is not None:
            return cached
        picture = self.decode(index)
        if self.store is not None:
            self.store.repair(index, picture)
        return picture

    def decode(self, index: int) -> Picture:
        """The picture of an image, decoded from its file: uint8 [H, W, 3]."""
        content = self.source.open(index)
        if isinstance(content, bytes):
            content = NamedBytes(content, f"{self.source.identity(index)} of {self.source.place}")
        return self.decoder(content)
