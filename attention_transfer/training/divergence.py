"""The error of a non-finite loss: when, at which learning rate, and the last good checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.errors import DivergenceError
from attention_transfer.training.context import RunContext


@contextmanager
def naming_the_epoch(run: RunContext, when: str) -> Iterator[None]:
    """Add the epoch, the learning rate and the last good checkpoint to a `DivergenceError`.

    Args:
        run: the run.
        when: the epoch, for the beginning of the message.
    """
    try:
        yield
    except DivergenceError as error:
        lr = run.state.optimizer.param_groups[0]["lr"]
        raise DivergenceError(f"{when}, lr {lr:g}: {error}. {_last_good(run)}") from None


def _last_good(run: RunContext) -> str:
    """A sentence that names the newest intact checkpoint."""
    checkpoints, last = run.paths.checkpoints(), run.paths.last
    if not checkpoints:
        return "There is no checkpoint yet."
    # the last is the newest, unless it is corrupt
    good = _progress_in(last) if last in checkpoints else None
    if good is None:
        others = [(progress, path) for path in checkpoints if (progress := _progress_in(path)) is not None]
        if not others:
            return f"None of the {len(checkpoints)} checkpoints can be read."
        good, last = max(others, key=lambda pair: pair[0])
    inside = f" and {good[1]} batches" if good[1] else ""
    return f"The last good checkpoint is {last} (after epoch {good[0]}{inside})."


def _progress_in(checkpoint: Path) -> tuple[int, int] | None:
    """Completed epochs and batches of the next one in a checkpoint; None if it cannot be read."""
    try:
        content = read_checkpoint(checkpoint)
        unfinished = content["training"]["unfinished"] if content["training"] else None
        return content["epoch"], unfinished["batches"] if unfinished else 0
    except Exception:  # whatever is wrong with a file must not hide the error that ended the run
        return None
