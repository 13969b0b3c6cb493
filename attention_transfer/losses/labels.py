"""Which terms of the loss depend on labels, and what that means for images without one label of their own."""

from __future__ import annotations

from collections.abc import Iterable

from attention_transfer.errors import ConfigError
from attention_transfer.losses.term import LossTerm


def needs_labels(term: LossTerm) -> bool:
    """Whether a term needs the label of each image, or a signal that depends on it."""
    return term.needs.labels or term.needs.gradient


def refuse_mixed_labels(terms: Iterable[LossTerm]) -> None:
    """Refuse terms that need one label of each image, for images that are mixed of two.

    Raises:
        ConfigError: a term with weight > 0 needs labels; names it.
    """
    for term in terms:
        if term.weight > 0 and needs_labels(term):
            raise ConfigError(
                f"the loss term {term.name!r} ({type(term).__name__}) needs one label of each image, but mixup or "
                "cutmix mixes images of two classes; set mixup=0 and cutmix=0, or leave the term out."
            )
