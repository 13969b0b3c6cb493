"""Progress bars, drawn in terminals and notebooks only."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # In a notebook without ipywidgets tqdm warns and falls back to text bars, which is fine.
    warnings.filterwarnings("ignore", category=TqdmWarning)
    from tqdm.auto import tqdm


def is_interactive() -> bool:
    """Whether output goes to a terminal or a Jupyter notebook."""
    return sys.stderr.isatty() or in_notebook()


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel; its streams are not terminals, but bars can be drawn there."""
    ipython = sys.modules.get("IPython")
    # a thread of somebody's may be importing it just now
    get_shell = getattr(ipython, "get_ipython", None)
    shell = None if get_shell is None else get_shell()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def write_line(text: str) -> None:
    """Write a line to standard output without breaking the bars that are drawn."""
    tqdm.write(text, file=sys.stdout)


def progress_bar(iterable: Iterable[Any] | None = None, **settings: Any) -> Any:
    """tqdm.auto's bar, drawn only in a terminal or notebook; as text in a notebook without ipywidgets."""
    settings.setdefault("leave", False)
    return tqdm(iterable, disable=not is_interactive(), **settings)
