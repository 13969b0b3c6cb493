"""The error for a flag that is given twice, which shows all its values: choosing one would be a guess.

A list is extended instead: `--layers a --layers b` is `--layers a b`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cyclopts import CycloptsError, CycloptsPanel, RepeatArgumentError


def tell(error: CycloptsError) -> Any:
    """Format an error of the command line; that of a repeated flag shows all its values."""
    if isinstance(error, RepeatArgumentError) and error.token.keyword is not None:
        given = " and ".join(occurrences(error.token.keyword, error.root_input_tokens or ()))
        error.msg = f"{error.token.keyword} is given more than once: {given}; give it once."
    return CycloptsPanel(error)


def occurrences(flag: str, words: Sequence[str]) -> Iterator[str]:
    """Each occurrence of a flag in a command line, as written there, with its values.

    Args:
        flag: in any of its spellings: --flip and --no-flip are one flag, as are --batch-size and --batch_size.
        words: of the command line.

    Example:
        >>> list(occurrences("--lr", ["train", "--lr", "0.1", "--epochs", "3", "--lr=0.2"]))
        ['--lr 0.1', '--lr=0.2']
    """
    name = _name(flag)
    for i, word in enumerate(words):
        if word.startswith("--") and _name(word) == name:
            yield " ".join([word, *_values_after(words[i + 1 :])])


def _values_after(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("--"):
            return
        yield word


def _name(flag: str) -> str:
    return flag.partition("=")[0].removeprefix("--").replace("_", "-").removeprefix("no-")
