"""Callbacks that record a run: bar, log, TensorBoard, trackers, summary, checkpoints.

To add one, add a file here and a line in `default_callbacks`; pass your own as `train_at(callbacks=[...])`.
"""

from __future__ import annotations

from attention_transfer.training.callbacks.bar import Bar
from attention_transfer.training.callbacks.base import Callback
from attention_transfer.training.callbacks.checkpoints import Checkpoints
from attention_transfer.training.callbacks.log import Log
from attention_transfer.training.callbacks.summary import Summary
from attention_transfer.training.callbacks.tensorboard import TensorBoard
from attention_transfer.training.callbacks.trackers import Trackers


def default_callbacks() -> list[Callback]:
    """The library's own callbacks, in the order in which they are called."""
    return [Log(), Bar(), TensorBoard(), Trackers(), Checkpoints(), Summary()]


__all__ = ["Callback", "default_callbacks"]
