"""Progress bars that are shown to a person and quiet everywhere else."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # In a notebook without ipywidgets it takes text bars instead, which is all that there is to be said.
    warnings.filterwarnings("ignore", category=TqdmWarning)
    from tqdm.auto import tqdm


def is_interactive() -> bool:
    """Whether output goes to a terminal or a Jupyter notebook."""
    return sys.stderr.isatty() or in_notebook()


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel; its streams are no terminals, and yet bars are drawn there."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def write_line(text: str) -> None:
    """Write a line to standard output without breaking the bars that are drawn."""
    tqdm.write(text, file=sys.stdout)


def progress_bar(iterable: Iterable[Any] | None = None, **settings: Any) -> Any:
    """tqdm.auto's bar, drawn only where someone is watching; as text in a notebook without ipywidgets."""
    settings.setdefault("leave", False)
    return tqdm(iterable, disable=not is_interactive(), **settings)
