"""The types that a checkpoint may hold: plain data and tensors, which can be loaded without running code."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from attention_transfer.errors import CheckpointError

_ATOMS = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.device, torch.dtype)
_TENSORS = (Tensor, nn.Parameter)


def check_plain(content: Any, where: str = "the checkpoint") -> None:
    """Refuse what `torch.load(..., weights_only=True)` would refuse, before it is written.

    Args:
        content: of a checkpoint.
        where: what messages call it.

    Raises:
        CheckpointError: names the entry and its type.
    """
    if type(content) in _ATOMS:
        return
    if type(content) in _TENSORS:
        # attributes that were set on a tensor are pickled with it
        check_plain(vars(content), f"the attributes of {where}")
    elif isinstance(content, Tensor):
        raise CheckpointError(
            f"{where} is a {type(content).__name__}, whose class a checkpoint cannot hold; make it a plain tensor "
            "(.as_subclass(torch.Tensor)), or leave it out of the state (register_buffer(..., persistent=False))."
        )
    elif type(content) in (dict, OrderedDict, Counter):
        for key, value in content.items():
            check_plain(key, f"a key of {where}")
            check_plain(value, f"{where}[{key!r}]")
    elif type(content) in (list, tuple, set):
        for number, value in enumerate(content):
            check_plain(value, f"{where}[{number}]")
    else:
        raise CheckpointError(
            f"{where} is a {type(content).__name__}, but a checkpoint holds plain data and tensors alone; turn it into "
            "numbers, text, lists, dicts or tensors."
        )
