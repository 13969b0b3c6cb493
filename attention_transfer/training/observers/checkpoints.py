"""The checkpoints of a run: last (inside an epoch too), best, every save_freq epochs, and final."""

from __future__ import annotations

from typing import Any

from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.errors import CheckpointError
from attention_transfer.training.observers.base import Observer, Run
from attention_transfer.training.state import EpochRecord


class Checkpoints(Observer):
    """Puts the state of the run on disk after each epoch, and where it pauses inside one."""

    def start(self, run: Run) -> None:
        # A run that goes on elsewhere, or from before its best epoch, may lack the file of the best or have another's.
        if run.state.best_epoch and _epoch_in(run) != run.state.best_epoch:
            write_checkpoint(run.artefacts.best, _best(run))
        is_numbered = run.state.epoch and run.state.epoch % run.config.save_freq == 0 and run.state.unfinished is None
        if is_numbered and not run.artefacts.numbered(run.state.epoch).exists():
            # the run was killed between two files of that epoch
            write_checkpoint(run.artefacts.numbered(run.state.epoch), run.state.to_checkpoint(run.runtime))
        if run.state.epoch >= run.config.epochs and not run.artefacts.final.exists():
            write_checkpoint(run.artefacts.final, run.state.to_checkpoint(run.runtime))

    def pause(self, run: Run) -> None:
        write_checkpoint(run.artefacts.last, run.state.to_checkpoint(run.runtime))

    def epoch(self, run: Run, record: EpochRecord, is_best: bool) -> None:
        content = run.state.to_checkpoint(run.runtime)
        write_checkpoint(run.artefacts.last, content)
        if is_best:
            write_checkpoint(run.artefacts.best, content)
        if run.state.epoch % run.config.save_freq == 0:
            write_checkpoint(run.artefacts.numbered(run.state.epoch), content)
        if run.state.epoch == run.config.epochs:
            write_checkpoint(run.artefacts.final, content)


def _epoch_in(run: Run) -> int | None:
    try:
        content = read_checkpoint(run.artefacts.best)
    except CheckpointError:
        return None
    epoch: int = content["epoch"]
    return epoch


def _best(run: Run) -> dict[str, Any]:
    content = run.state.to_checkpoint(run.runtime)
    if run.state.is_at_its_best:
        return content
    weights = {"model_state_dict": run.state.best_weights, "epoch": run.state.best_epoch}
    return {**content, **weights, "training": None}
