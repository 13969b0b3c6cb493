"""A GPU that is not there: tensors on it have shapes and no numbers, and what makes the host wait is counted.

Operations between tensors on the CPU run as they are.
"""

from __future__ import annotations

from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)


class FakeGpu(TorchDispatchMode):
    """The device cuda:0 of a `with` block.

    Args:
        monkeypatch: notes which tensors are page-locked.

    Attributes:
        waits: the operations for which the host would have waited: copies between the devices, apart from those of
            page-locked memory that do not block. What needs numbers of the GPU on the CPU raises an error.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.waits: list[str] = []
        # beneath this mode while it is entered, so that PyTorch does not look for a driver
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._pinned: list[Tensor] = []

        def pin_memory(tensor: Tensor) -> Tensor:
            copied = tensor.clone()
            self._pinned.append(copied)
            return copied

        monkeypatch.setattr(Tensor, "pin_memory", pin_memory)

    def __enter__(self) -> Self:
        self._fakes.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fakes.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        is_asked_for = any(isinstance(x, torch.device) and x.type == "cuda" for x in tree_leaves((args, kwargs)))
        if not is_asked_for and not any(isinstance(x, FakeTensor) for x in given):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        made = function(*args, **kwargs)
        devices = {x.device.type for x in (*given, *tree_leaves(made)) if isinstance(x, Tensor)}
        if len(devices) > 1 and not self._is_handed_over(given, kwargs):
            self.waits.append(str(function))
        return made

    def _is_handed_over(self, given: list[Tensor], kwargs: dict[str, Any]) -> bool:
        return bool(kwargs.get("non_blocking")) and any(given[0] is pinned for pinned in self._pinned)
