"""The options of our own loaders, and their checks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from attention_transfer.config import IMAGENET_MEAN, IMAGENET_STD
from attention_transfer.data.decoding.images import Triple
from attention_transfer.data.frame import CROP_PCT, ImageSize, Resize, check_image_size
from attention_transfer.data.loading.unlabelled import UnlabelledOrder
from attention_transfer.data.views import Augmentation
from attention_transfer.errors import DataError


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Check that an option is an integer in a range.

    Args:
        name: of the option, for the message.
        value: of it.
        least: least value allowed.
        most: greatest value allowed; None: any.

    Raises:
        DataError: it is not.
    """
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        raise DataError(f"{name} is {value!r}; it must be an integer {allowed}.")


def three_numbers(name: str, values: Triple) -> Triple:
    """The three numbers of an option, one for each channel.

    Raises:
        DataError: there are not three.
    """
    if len(values) != 3:
        raise DataError(f"{name} is {values!r}; it must be three numbers, one for each of red, green and blue.")
    red, green, blue = values
    return float(red), float(green), float(blue)


@dataclass(frozen=True)
class LoaderOptions:
    """Options of the loaders of sources; see `prepare_dataloaders` for each.

    Raises:
        DataError: a value is out of range.
    """

    batch_size: int = 32
    augment: bool = False
    num_workers: int = 4
    image_size: ImageSize = 128
    seed: int = 0
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD
    augmentation: Augmentation | None = None
    augment_views: int | Literal["warp"] | None = None
    augment_seed: int = 0
    rank: int = 0
    world_size: int = 1
    pin_memory: bool | None = None
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    resize: Resize = "squash"
    crop_pct: float = CROP_PCT
    mask_rotation: bool = False
    unlabelled_ratio: float = 1.0

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, 1)
        check_integer("num_workers", self.num_workers, 0)
        check_image_size(self.image_size)
        check_integer("seed", self.seed, 0)
        check_integer("augment_seed", self.augment_seed, 0)
        if self.augment_views not in (None, "warp"):
            check_integer("augment_views", self.augment_views, 1)
        check_integer("world_size", self.world_size, 1)
        check_integer("rank", self.rank, 0, self.world_size - 1)
        if self.sampler not in ("shuffle", "balanced"):
            raise DataError(f"sampler is {self.sampler!r}; it must be 'shuffle' or 'balanced'.")
        if self.augment and self.augmentation is not None and self.augmentation.mixes and self.augment_views == "warp":
            raise DataError(
                "augment_views is 'warp', but the augmentation mixes images, on which the attention is not that on the "
                "two whole images; set augment_views to a number or None, or mixup and cutmix to 0."
            )
        if not 0 < self.unlabelled_ratio < math.inf:
            raise DataError(f"unlabelled_ratio is {self.unlabelled_ratio}; it must be a number above 0.")
        if min(three_numbers("std", self.std)) <= 0:
            raise DataError(f"std is {self.std}; each standard deviation must be greater than 0.")
        three_numbers("mean", self.mean)

    def order_of_unlabelled(self, count: int) -> UnlabelledOrder | None:
        """The order of the unlabelled images of a training set; None if there are none.

        Raises:
            DataError: no batch would have one.
        """
        if not count:
            return None
        order = UnlabelledOrder(count, self.unlabelled_ratio, self.seed)
        if not order.beside(self.batch_size):
            raise DataError(
                f"unlabelled_ratio is {self.unlabelled_ratio:g}, which is less than one unlabelled image to a batch of "
                f"{self.batch_size}; raise it, raise batch_size, or leave unlabelled_dir out."
            )
        return order
