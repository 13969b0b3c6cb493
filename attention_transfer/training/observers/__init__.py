"""Observers write down what happens in a run: bar, log, TensorBoard, summary, checkpoints.

They run in the main process alone, and never draw from a global random generator. Adding one is a file here and
a line in `all_observers`.
"""

from __future__ import annotations

from attention_transfer.training.observers.bar import Bar
from attention_transfer.training.observers.base import Observer, Run
from attention_transfer.training.observers.checkpoints import Checkpoints
from attention_transfer.training.observers.log import Log
from attention_transfer.training.observers.summary import Summary
from attention_transfer.training.observers.tensorboard import TensorBoard


def all_observers() -> list[Observer]:
    """Every observer, in the order in which they hear of an event."""
    return [Log(), Bar(), TensorBoard(), Checkpoints(), Summary()]


__all__ = ["Observer", "Run", "all_observers"]
