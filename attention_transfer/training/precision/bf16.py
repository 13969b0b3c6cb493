"""Whether the CPU has bf16 instructions, according to torch; without them fp32 is chosen without timing."""

from __future__ import annotations

from collections.abc import Mapping

import torch

_FLAGS = {"x86_64": ("avx512_bf16", "amx_bf16"), "arm64": ("bf16", "sve_bf16")}
"""By `architecture`, the keys of `torch.cpu.get_capabilities()` of which one is enough."""


def cpu_capabilities() -> Mapping[str, object]:
    """This processor's capabilities according to torch; empty where this version of torch has no such function."""
    get = getattr(torch.cpu, "get_capabilities", None)
    return {} if get is None else get()


def has_bf16(capabilities: Mapping[str, object]) -> bool | None:
    """Whether a processor has instructions for bf16; None if its capabilities do not list them.

    True does not mean that bf16 is faster there: see `trial.compare`.

    Args:
        capabilities: as `torch.cpu.get_capabilities` gives them.
    """
    flags = _FLAGS.get(str(capabilities.get("architecture")), ())
    known = [bool(capabilities[flag]) for flag in flags if flag in capabilities]
    return any(known) if known else None
