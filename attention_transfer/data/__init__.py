"""From a folder of images, or from a loader that a user brings, to batches that know what they hold."""

from attention_transfer.data.batches import Batch, Example
from attention_transfer.data.brought import check_loader, classes_of, count_classes, unpack
from attention_transfer.data.dataset import ImageDataset
from attention_transfer.data.folder import Sample, Splits, find_splits
from attention_transfer.data.images import decode_image, resize_whole, to_tensor
from attention_transfer.data.loaders import prepare_dataloaders
from attention_transfer.data.sampler import EpochBatchSampler
from attention_transfer.data.views import Augmentation, ViewParameters, apply_view, draw_view, mean_colour

__all__ = [
    "Augmentation",
    "Batch",
    "EpochBatchSampler",
    "Example",
    "ImageDataset",
    "Sample",
    "Splits",
    "ViewParameters",
    "apply_view",
    "check_loader",
    "classes_of",
    "count_classes",
    "decode_image",
    "draw_view",
    "find_splits",
    "mean_colour",
    "prepare_dataloaders",
    "resize_whole",
    "to_tensor",
    "unpack",
]
