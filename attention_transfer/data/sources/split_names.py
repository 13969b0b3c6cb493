"""Recognising train, val and test in the names of folders, in the spellings of public data sets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Role = Literal["train", "val", "test", "held out", "unlabelled"]
"""The use of a split. 'held out' is for evaluation, as val or test; 'unlabelled' is not used."""

_WORDS: dict[Role, str] = {
    "train": "train training trn trainval",
    "val": "val valid validate validation validating dev devel development",
    "test": "test tests testing tst",
    "held out": "eval evaluation holdout heldout",
    "unlabelled": "pred preds predict prediction predictions unlabelled unlabeled",
}
_ROLES = {word: role for role, words in _WORDS.items() for word in words.split()}
_OF_TWO: dict[frozenset[Role], Role] = {
    frozenset({"train", "val"}): "train",
    frozenset({"test", "held out"}): "test",
    frozenset({"val", "held out"}): "val",
    frozenset({"test", "unlabelled"}): "unlabelled",
    frozenset({"train", "unlabelled"}): "unlabelled",
}
_FILLING = (
    "set sets data dataset datasets split splits subset image images img imgs pic pics picture pictures photo photos "
    "sample samples file files folder folders dir jpg jpeg png labelled labeled"
)
_FILLERS = frozenset(_FILLING.split())
_NO_CLASS = frozenset(("unknown", "unclassified", "unsorted", "none", "all", "dummy"))
# Longest first, so that "trainval" is not read as "train" followed by "val".
_FUSED = re.compile(
    f"({'|'.join(sorted(_ROLES, key=len, reverse=True))})({'|'.join(sorted(_FILLERS, key=len, reverse=True))})"
)
_WORD = re.compile(r"[^\W\d_]+")
_CAPITAL_INSIDE = re.compile(r"(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class SplitName:
    """The name of a split's folder, parsed.

    Attributes:
        role: the use of the split.
        of: the other words in the name, such as the data set's: 'seg' in seg_train; '' in Training and train_set_2.
    """

    role: Role
    of: str


def read_split_name(name: str) -> SplitName | None:
    """The split that a folder is named after, or None.

    Case is ignored, and words are separated by any separator, digit or capital: train, Training,
    TRAIN1, train_set, trainset, TrainingSet, test-images, valid, dev, holdout, seg_train, cats-train, dataset.test.
    A name of several roles (train_test_split) is no split, except train together with val, which is train. Shorter
    words, such as tr and ts, are not recognised, as they often mean something else.

    Example:
        >>> read_split_name("TestSet_2")
        SplitName(role='test', of='')
        >>> read_split_name("seg_train")
        SplitName(role='train', of='seg')
    """
    roles: set[Role] = set()
    others: list[str] = []
    for word in _words(name):
        if word in _ROLES:
            roles.add(_ROLES[word])
        elif fused := _FUSED.fullmatch(word):
            roles.add(_ROLES[fused[1]])
        elif word not in _FILLERS:
            others.append(word)
    role = _joined(roles)
    return None if role is None else SplitName(role, " ".join(others))


def _words(name: str) -> list[str]:
    words = " ".join(_WORD.findall(_CAPITAL_INSIDE.sub(" ", name))).lower()
    return words.replace("hold out", "holdout").replace("held out", "heldout").split()


def _joined(roles: set[Role]) -> Role | None:
    if len(roles) == 1:
        return next(iter(roles))
    return _OF_TWO.get(frozenset(roles))


def is_container_name(name: str) -> bool:
    """Whether a name is generic, such as images, data, jpg or img_files."""
    words = _words(name)
    return bool(words) and all(word in _FILLERS for word in words)


def means_unlabelled(name: str) -> bool:
    """Whether the name of a test split's only folder rules out a class: test/unknown, test/images, test/test.

    Example:
        >>> means_unlabelled("unknown"), means_unlabelled("test_images"), means_unlabelled("ants")
        (True, True, False)
    """
    split = read_split_name(name)
    if split is not None:
        return split.of == "" or split.role == "unlabelled"
    words = _words(name)
    return bool(words) and all(word in _FILLERS | _NO_CLASS for word in words)
