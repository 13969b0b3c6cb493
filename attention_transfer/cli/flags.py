"""Flags generated from `Config`, which defines name, type, help, allowed values and default of each setting."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cyclopts import Group, Parameter

from attention_transfer.config import GROUPS, Config, allowed_values

Command = Callable[..., int]


def takes_settings(*keys: str, default: str | None = None) -> Callable[[Command], Command]:
    """Decorate a command so that each of these settings is a flag; those that were given arrive as **settings.

    Args:
        keys: settings; without any, all of them.
        default: the default in words; None shows the setting's default.
    """

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]

        @wraps(command)
        def with_given(*arguments: Any, **flags: Any) -> int:
            known = {parameter.name for parameter in own}
            given = {key: value for key, value in flags.items() if key in known or value is not None}
            return command(*arguments, **given)

        flags = [_flag(key, default) for key in Config.model_fields if not keys or key in keys]
        parameters = [*own, *flags]
        with_given.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        with_given.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_given

    return decorate


@cache
def _types() -> dict[str, Any]:
    """The type of each setting, without the limits that `Config` checks itself."""
    return get_type_hints(Config)


@cache
def _allowed(key: str) -> str:
    return allowed_values(key).removesuffix(" or none")


@cache
def _groups() -> dict[str, Group]:
    """The heading of each setting."""
    headings = [(group, Group.create_ordered(group.heading)) for group in GROUPS]
    return {key: heading for group, heading in headings for key in group.model_fields}


def _flag(key: str, default: str | None) -> inspect.Parameter:
    kind: Any = _types()[key]
    of_list = [part for part in (kind, *get_args(kind)) if get_origin(part) is tuple and get_args(part)[-1] is ...]
    if of_list:
        # or else one of its words: cyclopts takes all words after a flag only where its type is a list alone
        words = [part for part in get_args(kind) if get_origin(part) is Literal]
        item: Any = Union[(get_args(of_list[0])[0], *words)]
        kind = tuple[item, ...]
    parameter = Parameter(
        help=describe(key, default),
        group=_groups()[key],
        consume_multiple=bool(of_list),
        negative=None if kind is bool else "",
        show_choices=False,
        # otherwise a name that is broken into two lines
        metavar="LOW HIGH" if key == "pixel_range" else None,
    )
    # None: the flag was not given, so that it does not override a settings file
    annotation = Annotated[kind | None, parameter]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def describe(key: str, default: str | None = None) -> str:
    """The help text of a setting.

    Args:
        key: a setting.
        default: the default in words; None shows the setting's default.

    Example:
        >>> describe("gamma")
        'factor of each cut of the learning rate [number, above 0, at most 1; default 0.1]'
    """
    field = Config.model_fields[key]
    allowed = _allowed(key)
    notes = [] if allowed in ("text", "true or false") else [allowed]
    if default is not None or field.default not in (None, ()):
        notes.append(f"default {default or in_words(field.default)}")
    return f"{field.description} [{'; '.join(notes)}]" if notes else str(field.description)


def in_words(value: object) -> str:
    """A setting's value as it is written after its flag.

    Example:
        >>> in_words((0.6, 1.0)), in_words(True)
        ('0.6 1', 'yes')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(in_words(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
