"""Matching two lists of classes by name, whatever their order."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from attention_transfer.errors import DataError

SHOWN_NAMES = 10
SHOWN_UNKNOWN = 5


@dataclass(frozen=True)
class Classes:
    """A list of classes, in the order of their numbers.

    Attributes:
        owner: whose classes they are, as the subject of a sentence: 'the teacher', 'val_loader'.
        names: of the classes; None if they have none.
        count: the number of classes without names; None if unknown.
        synonyms: other lists of names for the same classes in the same order.
    """

    owner: str
    names: tuple[str, ...] | None = None
    count: int | None = None
    synonyms: tuple[tuple[str, ...], ...] = ()

    @property
    def number(self) -> int | None:
        """The number of classes; None if unknown."""
        return self.count if self.names is None else len(self.names)


@dataclass(frozen=True)
class Match:
    """The mapping from one list of classes to another.

    Attributes:
        positions: our class i is their class positions[i]; None if both lists are the same.
        note: a sentence for the log if the match is not trivial, else None.
    """

    positions: tuple[int, ...] | None = None
    note: str | None = None


@lru_cache(maxsize=256)
def match(theirs: Classes, ours: Classes) -> Match:
    """Match each of our classes to one of theirs, by name.

    Theirs may be more than ours, and in another order. If one side has no names, classes are matched by index, which
    requires equal numbers of classes; the note says so.

    Args:
        theirs: the classes to search.
        ours: the classes to find.

    Raises:
        DataError: one of ours is not among theirs, or its name is ambiguous; or one side has no names and another
            number of classes. The message, which has no full stop, holds both lists.

    Example:
        >>> match(Classes("the teacher", ("ant", "bee", "cat")), Classes("the student", ("cat", "ant"))).positions
        (2, 0)
    """
    if theirs.names is None or ours.names is None:
        return _in_order(theirs, ours)
    if theirs.names == ours.names:
        return Match()
    for names in (theirs.names, *theirs.synonyms):
        positions = _positions(names, ours.names)
        if positions is not None:
            return Match(*_with_note(positions, theirs, ours))
    raise DataError(_difference(theirs, ours))


def _in_order(theirs: Classes, ours: Classes) -> Match:
    if None not in (theirs.number, ours.number) and theirs.number != ours.number:
        raise DataError(
            f"{theirs.owner} tells {_with_names(theirs)} classes apart, but {ours.owner} {_with_names(ours)}, and "
            f"{_without_names(theirs, ours)}, so that they cannot be matched"
        )
    return Match(note=f"{_without_names(theirs, ours)}: class i of {theirs.owner} is taken for class i of {ours.owner}")


def _without_names(theirs: Classes, ours: Classes) -> str:
    if theirs.names is None and ours.names is None:
        return f"neither {theirs.owner} nor {ours.owner} names its classes"
    return f"{theirs.owner if theirs.names is None else ours.owner} does not name its classes"


def _with_names(classes: Classes) -> str:
    return f"{classes.number}" if classes.names is None else f"{classes.number} ({in_words(classes.names)})"


def _positions(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """The index of each of our names among theirs; None if one is missing or duplicate."""
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(theirs):
        numbers.setdefault(_key(name), []).append(number)
    found = [numbers.get(_key(name), []) for name in ours]
    if any(len(places) != 1 for places in found):
        return None
    positions = tuple(places[0] for places in found)
    return positions if len(set(positions)) == len(positions) else None


def _key(name: str) -> str:
    # macOS may return a folder's name with decomposed accents
    return unicodedata.normalize("NFC", name)


def _with_note(positions: tuple[int, ...], theirs: Classes, ours: Classes) -> tuple[tuple[int, ...] | None, str | None]:
    if len(positions) < (theirs.number or 0):
        few = f"{ours.owner} has {len(positions)} of the {theirs.number} classes of {theirs.owner}"
        return positions, f"{few}: they are matched by name"
    if positions == tuple(range(len(positions))):
        return None, None
    return positions, f"{ours.owner} and {theirs.owner} number the same classes differently: they are matched by name"


def _difference(theirs: Classes, ours: Classes) -> str:
    assert theirs.names is not None
    assert ours.names is not None
    known = {_key(name): name for name in theirs.names}
    unknown = [name for name in ours.names if _key(name) not in known]
    both = f"{ours.owner} has the classes {in_words(ours.names)}, and {theirs.owner} {in_words(theirs.names)}"
    if not unknown:
        return f"{both}: a name is there twice, so that it does not say which class it is"
    shown = ", ".join(_with_nearest(name, known.values()) for name in unknown[:SHOWN_UNKNOWN])
    more = f" and {len(unknown) - SHOWN_UNKNOWN} more" if len(unknown) > SHOWN_UNKNOWN else ""
    return f"{both}, which has no {shown}{more}"


def _with_nearest(name: str, known: Iterable[str]) -> str:
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    return f"{name!r} (but {by_lower_case[close[0]]!r})" if close else f"{name!r}"


def in_words(names: Sequence[str]) -> str:
    """A list of names for a message, shortened if it is long.

    Example:
        >>> in_words(["ant", "bee"])
        'ant, bee'
        >>> in_words([str(number) for number in range(1000)])
        '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (1000 in all)'
    """
    shown = ", ".join(names[:SHOWN_NAMES])
    return shown if len(names) <= SHOWN_NAMES else f"{shown}, ... ({len(names)} in all)"


def numbers_as_names(count: int) -> tuple[str, ...]:
    """Names for classes without names: '0', '1', ..."""
    return tuple(str(number) for number in range(count))
