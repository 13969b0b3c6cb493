"""The checkpoints of a run: best, last, every save_freq epochs, and final."""

from __future__ import annotations

from attention_transfer.checkpoint import write_checkpoint
from attention_transfer.training.observers.base import Observer, Run
from attention_transfer.training.state import EpochRecord


class Checkpoints(Observer):
    """Puts the state of the run on disk after each epoch."""

    def epoch(self, run: Run, record: EpochRecord, is_best: bool) -> None:
        content = run.state.to_checkpoint(run.runtime)
        write_checkpoint(run.artefacts.last, content)
        if is_best:
            write_checkpoint(run.artefacts.best, content)
        if run.state.epoch % run.config.save_freq == 0:
            write_checkpoint(run.artefacts.numbered(run.state.epoch), content)
        if run.state.epoch == run.config.epochs:
            write_checkpoint(run.artefacts.final, content)
