"""What is said of a loss that is no longer a finite number: when, at which learning rate, and what is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.errors import DivergenceError
from attention_transfer.training.context import RunContext


@contextmanager
def naming_the_epoch(run: RunContext, when: str) -> Iterator[None]:
    """A loss that is no number is told with the epoch, the learning rate, and what there is to go back to."""
    try:
        yield
    except DivergenceError as error:
        lr = run.state.optimizer.param_groups[0]["lr"]
        raise DivergenceError(f"{when}, lr {lr:g}: {error}. {_last_good(run)}") from None


def _last_good(run: RunContext) -> str:
    """A sentence that names the newest checkpoint that verifies."""
    checkpoints, last = run.paths.checkpoints(), run.paths.last
    if not checkpoints:
        return "There is no checkpoint yet."
    # the last is the newest, unless something has happened to it
    good = _progress_in(last) if last in checkpoints else None
    if good is None:
        others = [(progress, path) for path in checkpoints if (progress := _progress_in(path)) is not None]
        if not others:
            return f"None of the {len(checkpoints)} checkpoints can be read."
        good, last = max(others, key=lambda pair: pair[0])
    inside = f" and {good[1]} batches" if good[1] else ""
    return f"The last good checkpoint is {last} (after epoch {good[0]}{inside})."


def _progress_in(checkpoint: Path) -> tuple[int, int] | None:
    """The epochs, and the batches of an unfinished one, that a checkpoint holds; None where it cannot be read."""
    try:
        content = read_checkpoint(checkpoint)
        unfinished = content["training"]["unfinished"] if content["training"] else None
        return content["epoch"], unfinished["batches"] if unfinished else 0
    except Exception:  # whatever is wrong with a file must not hide what has ended the run
        return None
