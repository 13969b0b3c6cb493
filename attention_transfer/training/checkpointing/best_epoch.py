"""Which epoch is the best, and when a run ends because no better one has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attention_transfer.config import Config
from attention_transfer.errors import ConfigError

ACCURACY = "accuracy"
_LESS_IS_BETTER = ("loss",)


def is_better(record: Mapping[str, float], best: Mapping[str, float], best_by: str) -> bool:
    """Whether an epoch is better than the best so far: higher accuracy or balanced accuracy, or lower loss.

    Args:
        record: its figures, with validation.
        best: those of the best epoch so far.
        best_by: accuracy, balanced_accuracy or loss, of validation.
    """
    here, there = record[f"val_{best_by}"], best[f"val_{best_by}"]
    return here < there if best_by in _LESS_IS_BETTER else here > there


def early_stop(config: Config, history: Sequence[Mapping[str, float]], best_epoch: int) -> str | None:
    """Why a run ends before its last epoch: early_stopping epochs were no better than the best one; None if it goes on.

    Args:
        config: uses early_stopping, best_by and epochs.
        history: a record of each epoch so far.
        best_epoch: from 1; 0 before the first.
    """
    patience, since = config.early_stopping, len(history) - best_epoch
    if patience is None or since < patience or len(history) >= config.epochs:
        return None
    best = history[best_epoch - 1][f"val_{config.best_by}"]
    return (
        f"val_{config.best_by} has not improved on the {best:.4g} of epoch {best_epoch} for "
        f"{since} epoch{'s' if since > 1 else ''} (early_stopping is {patience})"
    )


def check_can_be_measured(config: Config, *, validates: bool) -> None:
    """Refuse early stopping, and another measure of the best epoch than the default, without validation.

    Raises:
        ConfigError: names the setting and the remedy.
    """
    if validates:
        return
    remedy = "give a val_loader, or leave it out"
    if config.early_stopping is not None:
        raise ConfigError(f"early_stopping is {config.early_stopping}, but there is no validation to go by; {remedy}.")
    if config.best_by != ACCURACY:
        raise ConfigError(
            f"best_by is {config.best_by!r}, but without validation the last epoch counts as the best; {remedy}."
        )
