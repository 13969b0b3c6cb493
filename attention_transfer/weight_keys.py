"""The keys under which training scripts store a network's weights in a checkpoint, and their ranking."""

from __future__ import annotations

import re
from collections.abc import Sequence

PLAIN = frozenset(
    {
        "state_dict", "model_state_dict", "model_state", "model_weights", "model", "net", "net_state_dict", "network",
        "network_state_dict", "weights", "params", "parameters", "module",
    }
)  # fmt: skip
_AVERAGED = re.compile(r"(.*_)?(ema|swa)(_.*)?|averaged_model", re.IGNORECASE)
_OTHER_STATE = ("optim", "sched", "scaler", "criterion", "loss", "amp", "rng", "metric", "history")
"""Prefixes of words that name other state than weights."""


def rank_of(path: Sequence[str]) -> int:
    """The rank of a path of keys that may hold weights: 0 averaged weights, 1 a network, 2 anything else, 3 no weights.

    Averaged weights (EMA, SWA) come first, as in timm: they are the ones that are evaluated and published.

    Example:
        >>> [rank_of([key]) for key in ("state_dict_ema", "state_dict", "teacher", "optimizer")]
        [0, 1, 2, 3]
    """
    if any(word.startswith(_OTHER_STATE) for key in path for word in key.lower().split("_")):
        return 3
    if any(_AVERAGED.fullmatch(key) for key in path):
        return 0
    return 1 if any(key in PLAIN for key in path) else 2
