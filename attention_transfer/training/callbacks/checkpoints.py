"""The checkpoints of a run: last (inside an epoch too), best, every save_freq epochs, and final."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.errors import CheckpointError
from attention_transfer.training.callbacks.base import Callback
from attention_transfer.training.checkpointing.state import EpochRecord
from attention_transfer.training.context import RunContext


class Checkpoints(Callback):
    """Writes the state of the run to disk after each epoch, and when an unfinished epoch is saved."""

    saves = True

    def run_started(self, run: RunContext) -> None:
        """Write the checkpoints that a resumed run lacks: it began elsewhere, went back, or was killed between two."""
        files, state = run.paths, run.state
        if not state.step:
            return
        # first: resuming needs nothing else
        if _step_in(files.last) != state.step:
            write_checkpoint(files.last, state.to_checkpoint(run.runtime))
        if state.best_epoch and _epoch_in(files.best) != state.best_epoch:
            write_checkpoint(files.best, _best(run))
        due = []
        if state.epoch and state.epoch % run.config.save_freq == 0 and state.unfinished is None:
            due.append(files.numbered(state.epoch))
        if state.is_complete:
            due.append(files.final)
        else:
            files.final.unlink(missing_ok=True)  # it was final for a smaller `epochs` or `early_stopping`
        for path in due:
            if _step_in(path) != state.step:
                write_checkpoint(path, state.to_checkpoint(run.runtime))

    def epoch_paused(self, run: RunContext) -> None:
        write_checkpoint(run.paths.last, run.state.to_checkpoint(run.runtime))

    def epoch_completed(self, run: RunContext, record: EpochRecord, is_best: bool) -> None:
        content = run.state.to_checkpoint(run.runtime)
        write_checkpoint(run.paths.last, content)
        if is_best:
            write_checkpoint(run.paths.best, content)
        if run.state.epoch % run.config.save_freq == 0:
            write_checkpoint(run.paths.numbered(run.state.epoch), content)
        if run.state.is_complete:
            write_checkpoint(run.paths.final, content)


def _epoch_in(path: Path) -> int | None:
    """The epoch whose weights a checkpoint holds; None if it cannot be read."""
    try:
        epoch: int = read_checkpoint(path)["epoch"]
    except CheckpointError:
        return None
    return epoch


def _step_in(path: Path) -> int | None:
    """The batch after which a checkpoint was written; None if it cannot be resumed."""
    try:
        training = read_checkpoint(path)["training"]
    except CheckpointError:
        return None
    return None if training is None else training["step"]


def _best(run: RunContext) -> dict[str, Any]:
    content = run.state.to_checkpoint(run.runtime)
    if run.state.is_at_its_best:
        return content
    best = run.state.best_epoch
    weights = {"model_state_dict": run.state.best_weights, "epoch": best, "weights": run.state.weights_at(best)}
    return {**content, **weights, "training": None}
