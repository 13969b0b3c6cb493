"""Data: from a folder of images, or a user's loader, to batches that carry the indices of their samples."""

from attention_transfer.data.batches import Batch, Example
from attention_transfer.data.dataset import ImageDataset
from attention_transfer.data.decoding.images import decode_image, resize_whole, to_tensor
from attention_transfer.data.loading.loaders import prepare_dataloaders
from attention_transfer.data.loading.sampler import EpochBatchSampler
from attention_transfer.data.loading.user_loaders import check_loader, classes_of, count_classes, unpack
from attention_transfer.data.rendering import render_views, render_whole, view_matrices
from attention_transfer.data.sources.base import Sample
from attention_transfer.data.sources.folder import Splits, find_splits
from attention_transfer.data.views import Augmentation, ViewParameters, draw_view, draw_views

__all__ = [
    "Augmentation",
    "Batch",
    "EpochBatchSampler",
    "Example",
    "ImageDataset",
    "Sample",
    "Splits",
    "ViewParameters",
    "check_loader",
    "classes_of",
    "count_classes",
    "decode_image",
    "draw_view",
    "draw_views",
    "find_splits",
    "prepare_dataloaders",
    "render_views",
    "render_whole",
    "resize_whole",
    "to_tensor",
    "unpack",
    "view_matrices",
]
