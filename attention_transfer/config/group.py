"""What the groups of settings share: how they are checked, and the types of values."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class SettingsGroup(BaseModel):
    """Settings that belong together. Frozen; unknown keys, wrong types and values out of range are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        validate_default=True,
    )

    heading: ClassVar[str]
    """The group's heading in `--help`."""


def as_tuple(value: object) -> object:
    """A list as a tuple, so that settings may be written as YAML or JSON; anything else unchanged."""
    return tuple(value) if isinstance(value, list) else value


def word_alone(value: object) -> object:
    """A list or tuple of a single word as the word, as the command line gives a setting that is a word or a list."""
    is_word = isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str)
    return value[0] if is_word else as_tuple(value)  # type: ignore[index]


def modules_or(word: str) -> Callable[[object], object]:
    """A validator for a tuple of names of modules, or this word alone; one name need not be in a list."""

    def check(value: object) -> object:
        value = word_alone(value)
        return (value,) if isinstance(value, str) and value != word else value

    return check


def as_size(value: object) -> object:
    """A pair of equal sides as one, and a list as a tuple; anything else unchanged."""
    pair = as_tuple(value)
    return pair[0] if isinstance(pair, tuple) and len(pair) == 2 and pair[0] == pair[1] else pair


def _as_path(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Path = Annotated[str, BeforeValidator(_as_path), Field(min_length=1)]
Triple = Annotated[tuple[float, float, float], BeforeValidator(as_tuple)]
Side = Annotated[int, Field(ge=8, le=4096)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Weights = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(as_tuple), Field(min_length=2)]
NotNegative = Annotated[tuple[Annotated[float, Field(ge=0)], ...], BeforeValidator(as_tuple), Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Switch = Literal["auto", "on", "off"]
