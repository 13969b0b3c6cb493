"""Progress bars that are shown to a person and quiet everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def is_interactive() -> bool:
    """Whether output goes to a terminal or a Jupyter notebook."""
    return sys.stderr.isatty() or in_notebook()


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel; its streams are no terminals, and yet bars are drawn there."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def progress_bar(iterable: Iterable[Any] | None = None, **settings: Any) -> Any:
    """tqdm.auto's bar, drawn only where someone is watching."""
    settings.setdefault("leave", False)
    return tqdm(iterable, disable=not is_interactive(), **settings)
