"""How a GPU computes: in float32 or TF32, with kernels chosen by rule or by timing; which GPU is current."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from attention_transfer.logs import log_once


class Kernels:
    """PyTorch's global switches for CUDA during a run, restored by `close`; on other devices nothing is switched.

    A device with a number becomes the current one, so that what asks for 'cuda' alone (pinned memory, random states)
    opens no context on cuda:0.

    Args:
        device: of the run.
        tf32: compute float32 matrix products and convolutions in TF32: float32's range, and 10 bits of its 23.
    """

    def __init__(self, device: torch.device, *, tf32: bool) -> None:
        self._restoring = ExitStack()
        self._is_cuda = device.type == "cuda"
        if not self._is_cuda:
            if tf32:
                log_once(f"tf32 changes nothing on {device.type}", logging.INFO)
            return
        with ExitStack() as switched:
            if device.index is not None:
                switched.enter_context(torch.cuda.device(device.index))
            switched.enter_context(_float32_in(tf32=tf32))
            switched.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
            torch.backends.cudnn.benchmark = False
            self._restoring = switched.pop_all()
        computed = "TF32, as tf32 is set" if tf32 else "float32; tf32=True computes them in TF32, faster and rougher"
        log_once(f"matrix products and convolutions of float32 are computed in {computed}", logging.INFO)

    def choose_by_timing(self) -> None:
        """Let cuDNN time its kernels and take the fastest, whose last bits differ from run to run.

        For runs that keep no outputs for others. A user who asks PyTorch for determinism gets it.
        """
        if self._is_cuda and not (torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic):
            torch.backends.cudnn.benchmark = True

    def close(self) -> None:
        """Restore the switches; a second call does nothing."""
        self._restoring.close()


def card_identity(device: torch.device) -> dict[str, Any]:
    """What the last bits of a network's outputs depend on beside its settings, for a cache key; nothing on a CPU.

    Args:
        device: on which the network runs.

    Returns:
        of CUDA: card, the GPU's model, and tf32, whether float32 is computed in TF32.
    """
    if device.type != "cuda":
        return {}
    return {"card": torch.cuda.get_device_name(device), "tf32": computes_in_tf32()}


def computes_in_tf32() -> bool:
    """Whether convolutions or matrix products of float32 are computed in TF32 on a GPU that has it."""
    before = _switches()
    if isinstance(before, _Legacy):
        return before.convolutions or before.products != "highest"
    return "tf32" in before


class _Legacy(NamedTuple):
    """The two switches that every version of PyTorch has."""

    convolutions: bool
    products: str

    def set(self) -> None:
        torch.backends.cudnn.allow_tf32 = self.convolutions
        torch.set_float32_matmul_precision(self.products)


class _ByOperation(tuple[str, ...]):
    """A switch for each operation, from PyTorch 2.9 on."""

    @classmethod
    def read(cls) -> _ByOperation:
        return cls(each.fp32_precision for each in cls._owners())

    @staticmethod
    def _owners() -> list[Any]:
        cudnn: Any = torch.backends.cudnn
        return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]

    def set(self) -> None:
        for each, value in zip(self._owners(), self, strict=True):
            each.fp32_precision = value


def _switches() -> _Legacy | _ByOperation:
    try:
        return _Legacy(torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    except RuntimeError:
        # the user has set operations apart, which the legacy switches cannot say
        return _ByOperation.read()


@contextmanager
def _float32_in(*, tf32: bool) -> Iterator[None]:
    """Set the legacy switches, as torch.compile asks them and fails where only the others are set."""
    before = _switches()
    _Legacy(tf32, "high" if tf32 else "highest").set()
    try:
        yield
    finally:
        before.set()
