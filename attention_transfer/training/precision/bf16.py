"""Whether a processor has instructions for bf16, as far as torch tells; without them fp32 needs no trial to win."""

from __future__ import annotations

from collections.abc import Mapping

import torch

_FLAGS = {"x86_64": ("avx512_bf16", "amx_bf16"), "arm64": ("bf16", "sve_bf16")}
"""By `architecture`, the keys of `torch.cpu.get_capabilities()` of which one is enough."""


def cpu_capabilities() -> Mapping[str, object]:
    """What torch tells of this processor; empty where this version of torch tells nothing."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    return {} if tell is None else tell()


def has_bf16(capabilities: Mapping[str, object]) -> bool | None:
    """Whether a processor has instructions for bf16; None where its capabilities do not say.

    True does not mean that bf16 is faster there: see `trial.compare`.

    Args:
        capabilities: as `torch.cpu.get_capabilities` gives them.
    """
    flags = _FLAGS.get(str(capabilities.get("architecture")), ())
    told = [bool(capabilities[flag]) for flag in flags if flag in capabilities]
    return any(told) if told else None
