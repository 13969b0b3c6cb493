"""Hooks on a network while a context is open, or until they are closed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from types import TracebackType
from typing import Self


class Hooked(ABC):
    """A context that registers hooks when it opens and removes them when it closes, also after an error.

    Args:
        stay: the hooks stay registered from the first context to `close`, as a compiled network is compiled with them.
    """

    def __init__(self, *, stay: bool = False) -> None:
        self.stay = stay
        self._hooks: ExitStack | None = None

    @abstractmethod
    def _attach(self, hooks: ExitStack) -> None:
        """Register the hooks, each with its removal in `hooks`."""

    def __enter__(self) -> Self:
        if self._hooks is None:
            with ExitStack() as hooks:
                self._attach(hooks)
                self._hooks = hooks.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.stay:
            self.close()

    def close(self) -> None:
        """Remove the hooks; a second call does nothing."""
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.close()
