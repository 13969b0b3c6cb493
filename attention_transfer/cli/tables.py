"""Aligned plain text; headings are bold on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

GAP = "  "


def heading(text: str) -> None:
    """Print a heading."""
    is_read = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(f"\033[1m{text}\033[0m" if is_read else text)


def facts(title: str, values: Mapping[str, object]) -> None:
    """Print a heading, and below it a line for each name and its value.

    Example:
        >>> facts("run", {"epochs": 10, "test accuracy": percent(0.974)})
        run
          epochs         10
          test accuracy  97.40 %
    """
    heading(title)
    width = max(map(len, values), default=0)
    for name, value in values.items():
        print(f"{GAP}{name:<{width}}{GAP}{value}")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below titles; columns of numbers are aligned to the right.

    Example:
        >>> table(["class", "images"], [["ant", "9"], ["bee", "12"]])
          class  images
          ant         9
          bee        12
    """
    columns = list(zip(titles, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    are_numbers = [all(cell[:1].isdigit() for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(cells, widths, are_numbers, strict=True)
        ]
        return (GAP + GAP.join(aligned)).rstrip()

    heading(line(titles))
    for row in rows:
        print(line(row))


def percent(fraction: float) -> str:
    """A fraction in per cent.

    Example:
        >>> percent(0.5)
        '50.00 %'
    """
    return f"{100 * fraction:.2f} %"


def millions(count: int) -> str:
    """A count in millions with three significant digits.

    Example:
        >>> millions(1_474_902), millions(592_000_000)
        ('1.47 M', '592 M')
    """
    digits = max(0, 3 - len(str(count // 1_000_000)))
    return f"{count / 1e6:.{digits}f} M"
