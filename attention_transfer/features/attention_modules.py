"""Attention modules of a transformer: which they are, and their queries and keys as they run.

Queries and keys are read by hooks where the module itself has computed them (timm's `q_norm` and `k_norm`, a linear
layer `qkv`), and computed again from the module's input by its own weights where it does not show them
(`nn.MultiheadAttention`). The module's output is not changed.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from attention_transfer.errors import ConfigError

_NAMED_ATTENTION = re.compile(r"Attn|Attention|^XCA$")
_IS_NO_BLOCK = re.compile(r"Pool|Block|Layer$")
_REASONS = (
    (re.compile("Window|PartitionA|HaloAttn|LocallyGrouped|MaskUnit"), "it attends inside windows alone"),
    (re.compile("^XCA$|ChannelA|CrossCovariance"), "it attends between channels, not between places"),
    (re.compile("^ClassAttn$|TalkingHead"), "its heads are mixed, or it has queries of the class token alone"),
)


class QueriesAndKeys(NamedTuple):
    """What a module has attended by: softmax(scale q k^T) are its attention probabilities.

    Attributes:
        queries: a function from a slice of n of the tokens to their queries [B, heads, n, d].
        keys: [B, heads, N, d].
        scale: 1 / sqrt(d), as a rule.
    """

    queries: Callable[[slice], Tensor]
    keys: Tensor
    scale: float


class Reader(Protocol):
    """Reads the queries and keys of one attention module, each time it runs."""

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks; the caller removes them."""
        ...

    def take(self) -> QueriesAndKeys | None:
        """Those of the last pass, which are not held here afterwards; None if the module did not run.

        Raises:
            ConfigError: the module attended otherwise than by queries and keys alone, as with a mask.
        """
        ...


class _Call:
    """The arguments of a module's last call, by the names in its signature."""

    def __init__(self, module: nn.Module) -> None:
        self._signature = inspect.signature(module.forward)
        self._received: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def listen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # named only when they are taken: a signature cannot be bound inside a compiled network
        self._received = args, kwargs

    def take(self) -> Mapping[str, Any] | None:
        """The arguments, which are not held here afterwards; None if the module was not called."""
        received, self._received = self._received, None
        if received is None:
            return None
        args, kwargs = received
        return self._signature.bind(*args, **kwargs).arguments


def _refuse_masks(module: nn.Module, arguments: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    for name, value in arguments.items():
        if name not in allowed and isinstance(value, Tensor | bool) and value is not False:
            raise ConfigError(
                f"attention='class_token': {type(module).__name__} was called with {name}, which changes what it "
                "attends to in a way that this library does not follow; choose another kind of attention."
            )


class NormedReader:
    """timm's modules: queries and keys are what `q_norm` and `k_norm` put out (identities where they are not used).

    Rotary position embeddings, which come after, are applied again to the outputs.

    Args:
        module: with the attributes q_norm, k_norm, num_heads and scale.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module
        self._call = _Call(module)
        # the keys never change, as they are guards of a compiled network
        self._outputs: dict[str, Tensor | None] = {"q": None, "k": None}

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """Whether the module is of this kind."""
        norms = isinstance(getattr(module, "q_norm", None), nn.Module) and isinstance(
            getattr(module, "k_norm", None), nn.Module
        )
        return bool(norms and _has_heads(module) and _attends_to_itself(module))

    def attach(self) -> list[RemovableHandle]:
        """See `Reader`."""
        return [
            self._module.register_forward_pre_hook(self._call.listen, with_kwargs=True),
            self._module.q_norm.register_forward_hook(self._listener("q")),
            self._module.k_norm.register_forward_hook(self._listener("k")),
        ]

    def take(self) -> QueriesAndKeys | None:
        """See `Reader`."""
        arguments, q, k = self._call.take(), self._outputs["q"], self._outputs["k"]
        self._outputs["q"] = self._outputs["k"] = None
        if arguments is None or q is None or k is None:
            return None
        _refuse_masks(self._module, arguments, ("x", "rope"))
        rope = arguments.get("rope")
        keys = k if rope is None else self._rotated(k, rope)
        if k.shape[1] != q.shape[1]:  # grouped queries
            keys = keys.repeat_interleave(q.shape[1] // k.shape[1], dim=1)

        def queries(tokens: slice) -> Tensor:
            is_prefix = tokens.stop is not None and tokens.stop <= getattr(self._module, "num_prefix_tokens", 0)
            return (q if rope is None or is_prefix else self._rotated(q, rope))[:, :, tokens]

        return QueriesAndKeys(queries, keys, float(self._module.scale))

    def _listener(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def listen(module: nn.Module, args: Any, output: Tensor) -> None:
            self._outputs[name] = output

        return listen

    def _rotated(self, x: Tensor, rope: Tensor) -> Tensor:
        from timm.layers import apply_rot_embed_cat

        prefix = self._module.num_prefix_tokens
        turned = apply_rot_embed_cat(x[:, :, prefix:], rope, half=getattr(self._module, "rotate_half", False))
        return torch.cat([x[:, :, :prefix], turned.type_as(x)], dim=2)


class FusedLinearReader:
    """Modules with one linear layer `qkv` and no norms, as in the code of DeiT and DINO: its output is split.

    Args:
        module: with the attributes qkv (to [B, N, 3 heads d]), num_heads and scale.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module
        self._call = _Call(module)
        self.output: Tensor | None = None

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """Whether the module is of this kind."""
        qkv = getattr(module, "qkv", None)
        return bool(
            isinstance(qkv, nn.Linear)
            and _has_heads(module)
            and not hasattr(module, "q_norm")
            and qkv.out_features % (3 * module.num_heads) == 0  # type: ignore[operator]
            and isinstance(getattr(module, "proj", None), nn.Linear)
            and _attends_to_itself(module)
        )

    def attach(self) -> list[RemovableHandle]:
        """See `Reader`."""
        return [
            self._module.register_forward_pre_hook(self._call.listen, with_kwargs=True),
            self._module.qkv.register_forward_hook(self._listen),
        ]

    def take(self) -> QueriesAndKeys | None:
        """See `Reader`."""
        arguments, output = self._call.take(), self.output
        self.output = None
        if arguments is None or output is None or output.dim() != 3:
            return None
        _refuse_masks(self._module, dict(list(arguments.items())[1:]), ())
        heads = self._module.num_heads
        q, k, _ = output.view(*output.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return QueriesAndKeys(lambda tokens: q[:, :, tokens], k, float(self._module.scale))

    def _listen(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.output = output


class MultiheadReader:
    """`nn.MultiheadAttention` (torchvision's transformers): computed again from its input by its own weights.

    Args:
        module: called with one tensor as query, key and value.
    """

    def __init__(self, module: nn.MultiheadAttention) -> None:
        self._module = module
        self._call = _Call(module)

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """Whether the module is of this kind."""
        return bool(
            isinstance(module, nn.MultiheadAttention)
            and module._qkv_same_embed_dim
            and module.bias_k is None
            and not module.add_zero_attn
        )

    def attach(self) -> list[RemovableHandle]:
        """See `Reader`."""
        return [self._module.register_forward_pre_hook(self._call.listen, with_kwargs=True)]

    def take(self) -> QueriesAndKeys | None:
        """See `Reader`."""
        arguments, module = self._call.take(), self._module
        if arguments is None:
            return None
        known = ("query", "key", "value", "need_weights", "average_attn_weights")
        _refuse_masks(module, arguments, known)
        query, key = arguments["query"], arguments["key"]
        if not module.batch_first:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        keys = self._projected(key, slice(module.embed_dim, 2 * module.embed_dim))
        return QueriesAndKeys(
            lambda tokens: self._projected(query[:, tokens], slice(0, module.embed_dim)), keys, module.head_dim**-0.5
        )

    def _projected(self, x: Tensor, part: slice) -> Tensor:
        """[B, n, C] by a third of the module's weights, as [B, heads, n, d]."""
        weight, bias = self._module.in_proj_weight[part], self._module.in_proj_bias
        projected: Tensor = F.linear(x.to(weight.dtype), weight, None if bias is None else bias[part])
        return projected.view(*projected.shape[:2], self._module.num_heads, -1).transpose(1, 2)


READERS: tuple[Any, ...] = (NormedReader, FusedLinearReader, MultiheadReader)
"""The kinds of attention modules; a new kind is a class with `takes`, and a line here."""


def reader_of(module: nn.Module) -> Reader | None:
    """The reader of an attention module; None if it is none, or of a kind that cannot be read."""
    kind = next((kind for kind in READERS if kind.takes(module)), None)
    return None if kind is None else kind(module)


def is_readable(module: nn.Module) -> bool:
    """Whether a module is an attention module of a kind that can be read."""
    return any(kind.takes(module) for kind in READERS)


def attends_otherwise(module: nn.Module) -> bool:
    """Whether a module's name says that it is an attention module of a block, though none that can be read."""
    name = type(module).__name__
    return bool(_NAMED_ATTENTION.search(name)) and not _IS_NO_BLOCK.search(name) and not is_readable(module)


def reason_against(module: nn.Module) -> str:
    """Why the attention of a module cannot be read, as the end of a sentence."""
    name = type(module).__name__
    found = [reason for pattern, reason in _REASONS if pattern.search(name)]
    return found[0] if found else "it does not attend by queries and keys of all tokens alone"


def _has_heads(module: nn.Module) -> bool:
    return isinstance(getattr(module, "num_heads", None), int) and isinstance(getattr(module, "scale", None), float)


def _attends_to_itself(module: nn.Module) -> bool:
    name = type(module).__name__
    return not any(pattern.search(name) for pattern, _ in _REASONS) and "Pool" not in name
