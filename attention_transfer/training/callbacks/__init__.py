"""Observers write down what happens in a run: bar, log, TensorBoard, summary, checkpoints.

They run in the main process alone, and never draw from a global random generator. Adding one is a file here and
a line in `default_callbacks`.
"""

from __future__ import annotations

from attention_transfer.training.callbacks.bar import Bar
from attention_transfer.training.callbacks.base import Callback
from attention_transfer.training.callbacks.checkpoints import Checkpoints
from attention_transfer.training.callbacks.log import Log
from attention_transfer.training.callbacks.summary import Summary
from attention_transfer.training.callbacks.tensorboard import TensorBoard
from attention_transfer.training.context import RunContext


def default_callbacks() -> list[Callback]:
    """Every observer, in the order in which they hear of an event."""
    return [Log(), Bar(), TensorBoard(), Checkpoints(), Summary()]


__all__ = ["Observer", "RunContext", "default_callbacks"]
