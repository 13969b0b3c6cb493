"""Validation of an epoch: the weights that count in it, and the average of the student's beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from attention_transfer.training.checkpointing.state import EpochRecord
from attention_transfer.training.context import RunContext
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.divergence import naming_the_epoch
from attention_transfer.training.epoch import run_validation_epoch

_OF_EMA = ("loss", "accuracy", "balanced_accuracy")


def measure(
    run: RunContext, criterion: Criterion, loader: Iterable[Any], on_batch: Callable[[int], None]
) -> EpochRecord:
    """The figures of the epoch that is being completed, for its record.

    Args:
        run: the run.
        criterion: of validation.
        loader: likewise.
        on_batch: called after each batch with the number of batches done.

    Returns:
        val_ and the figures of the weights that count (see `RunState.weights_at`); where that is the student although
        there is an average, val_ema_ and loss, accuracy and balanced_accuracy of the average.
    """
    state, epoch = run.state, run.state.epoch + 1

    def figures_of(network: nn.Module) -> dict[str, float]:
        run.runtime.align_buffers(network)
        with naming_the_epoch(run, f"epoch {epoch}, validation"):
            return run_validation_epoch(criterion, network, loader, run.runtime, on_batch, epoch=float(epoch)).figures

    record = {f"val_{key}": value for key, value in figures_of(state.network_at(epoch)).items()}
    if state.measures_both_at(epoch) and state.ema is not None:
        of_ema = figures_of(state.ema.network)
        record |= {f"val_ema_{key}": of_ema[key] for key in _OF_EMA}
    return record
