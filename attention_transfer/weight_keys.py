"""The keys under which training scripts put a network's weights into a checkpoint, and which of them comes first."""

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
"""How words begin that name the state of something else."""


def rank_of(path: Sequence[str]) -> int:
    """How good a place for weights this is: 0 a running average, 1 a network, 2 anything else, 3 not a network's.

    Averaged weights (EMA, SWA) come first, as timm has it: they are those that are evaluated and published.

    Example:
        >>> [rank_of([key]) for key in ("state_dict_ema", "state_dict", "teacher", "optimizer")]
        [0, 1, 2, 3]
    """
    if any(word.startswith(_OTHER_STATE) for key in path for word in key.lower().split("_")):
        return 3
    if any(_AVERAGED.fullmatch(key) for key in path):
        return 0
    return 1 if any(key in PLAIN for key in path) else 2
