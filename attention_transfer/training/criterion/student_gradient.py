"""The student's gradient by its input, which a loss may differentiate once more."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention_transfer.config import Config
from attention_transfer.distributed import Runtime
from attention_transfer.errors import ConfigError
from attention_transfer.features.gradients import check_twice_differentiable, gradient_by
from attention_transfer.features.signals import INPUT_GRADIENT, Needs, Signal
from attention_transfer.logs import log_once
from attention_transfer.losses.term import LossTerm
from attention_transfer.modules import unwrapped


def check_gradient_terms(terms: Sequence[LossTerm], config: Config, precision: str | None = None) -> None:
    """Refuse settings under which the student's gradient by its input cannot be differentiated once more.

    Args:
        terms: the loss terms of a run.
        config: uses compile.
        precision: the student's number format, once it is known.

    Raises:
        ConfigError: a term with weight above 0 needs that gradient, and `compile` is set, or the format is fp16.
    """
    needing = [term.name for term in terms if term.weight > 0 and term.needs.gradient]
    if not needing:
        return
    if config.compile:
        raise ConfigError(_not_compiled(needing[0]))
    if precision == "fp16":
        raise ConfigError(
            f"the loss term {needing[0]!r} needs the gradient by the input, which vanishes in fp16; set "
            "precision='bf16' or 'fp32'."
        )


def _not_compiled(name: str) -> str:
    return (
        f"the loss term {name!r} differentiates the student twice, which compiled networks do not support; leave "
        "compile out, or choose another kind of attention."
    )


class StudentGradient:
    """The student's gradient by its input, as a signal or as maps.

    Args:
        terms: the loss terms of a run.
        config: uses compile.
        runtime: gives the number format.

    Raises:
        ConfigError: see `check_gradient_terms`.
    """

    def __init__(self, terms: Sequence[LossTerm], config: Config, runtime: Runtime) -> None:
        check_gradient_terms(terms, config, runtime.precision)
        self.needs = Needs.union(term.needs for term in terms)
        self._minimised = [term.name for term in terms if term.weight > 0 and term.needs.gradient]
        self._checked: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def is_needed(self, *, is_compared: bool) -> bool:
        """Whether it is computed for a batch: for maps also in validation, otherwise where there are gradients.

        Args:
            is_compared: whether there is a teacher.
        """
        has_maps = is_compared and any(function.of == INPUT_GRADIENT for function in self.needs.maps)
        return has_maps or (self.needs.input_gradient and torch.is_grad_enabled())

    @contextmanager
    def forward_pass(self, student: nn.Module) -> Iterator[None]:
        """The context of the student's forward pass: with a graph, and with attention that has second derivatives.

        Fused kernels of scaled_dot_product_attention have none, while its path of single operations, which computes
        the same, has.

        Raises:
            ConfigError: the student is compiled.
        """
        if not (torch.is_grad_enabled() and self._minimised):
            with torch.enable_grad():
                yield
            return
        if hasattr(student, "_orig_mod"):
            raise ConfigError(_not_compiled(self._minimised[0]))
        if any(isinstance(m, nn.MultiheadAttention) or getattr(m, "fused_attn", False) for m in student.modules()):
            log_once("the student's attention is computed without fused kernels, which have no second derivative")
        with sdpa_kernel([SDPBackend.MATH]):
            yield

    def signals(self, student: nn.Module, images: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Signal]:
        """The gradient [B, C, H, W], and its maps [B, h, w] with their coverage.

        Args:
            student: for messages.
            images: [B, C, H, W], requiring gradients, from which `logits` were computed.
            logits: [B, K].
            labels: [B]; -100 where there is none.

        Raises:
            ConfigError: it is to be differentiated once more, and an operation of the student has no second derivative.
        """
        is_training = torch.is_grad_enabled()
        gradient = gradient_by(images, logits, labels, create_graph=is_training)
        network = unwrapped(student)
        if is_training and self._minimised and network not in self._checked:
            check_twice_differentiable(gradient, network)
            self._checked.add(network)
        signals = self.needs.map_signals(INPUT_GRADIENT, [gradient])
        if self.needs.input_gradient and is_training:
            signals[INPUT_GRADIENT] = Signal(gradient, depends_on_label=True)
        return signals
