"""Matching a state_dict to a network that it does not fit exactly: another head, none, or other names.

The differences that are allowed do not change the attention maps: the head, the counters of batch norms (which old
files lack), and the names that public code gives to the same parameters. Everything else must agree, key by key and
shape by shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from attention_transfer.catalogue import library_of
from attention_transfer.networks.architecture import Architecture, Shapes
from attention_transfer.networks.libraries import library_architecture
from attention_transfer.networks.registry import architectures, expected_shapes

COUNTER = "num_batches_tracked"

Shape = tuple[int, ...]


class Fit(NamedTuple):
    """A network that a state_dict belongs to.

    Attributes:
        name: the network's.
        num_classes: its logits; None where the state_dict has no head, or one that cannot be built from it.
        keys: the key in the state_dict of each tensor of the network that it has.
        head: description of the head, if it is not the network's own Linear; '' if it is.
    """

    name: str
    num_classes: int | None
    keys: dict[str, str]
    head: str = ""

    @property
    def rank(self) -> int:
        """0 for the network's own head, 1 for another Linear, 2 for none that can be built."""
        return 2 if self.num_classes is None else int(bool(self.head))


class Misfit(NamedTuple):
    """How a state_dict differs from a network.

    Attributes:
        name: the network's.
        matching: how many tensors agree.
        missing: keys of the network that the state_dict lacks.
        unexpected: keys that the network does not have.
        reshaped: keys of both with the shape in the state_dict, and that in the network.
    """

    name: str
    matching: int
    missing: list[str]
    unexpected: list[str]
    reshaped: list[tuple[str, Shape, Shape]]

    @property
    def share(self) -> float:
        """The fraction of the keys of either side that agree."""
        return self.matching / (self.matching + len(self.missing) + len(self.unexpected) + len(self.reshaped))

    def in_words(self, most: int = 3) -> str:
        """The differences, a few of each kind, as in "missing layer4.1.bn2.bias; unexpected fc.2.weight"."""
        shapes = [f"{key} is {list(here)} instead of {list(there)}" for key, here, there in self.reshaped]
        parts = {"missing": self.missing, "unexpected": self.unexpected, "other shapes:": shapes}
        return "; ".join(f"{kind} {_some(items, most)}" for kind, items in parts.items() if items)


def _some(items: list[str], most: int) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return f"{', '.join(items[:most])}{more}"


def find_fits(shapes: Shapes, name: str | None = None) -> list[Fit]:
    """Every registered network that a state_dict of these shapes belongs to; only those with the best head.

    Args:
        shapes: of a state_dict.
        name: try this network alone, which may be one of timm or torchvision.

    Example:
        >>> from attention_transfer import create_model
        >>> weights = create_model("CifarResNet-20", num_classes=4).state_dict()
        >>> shapes = {key: tuple(tensor.shape) for key, tensor in weights.items() if not key.startswith("linear")}
        >>> [(fit.name, fit.num_classes) for fit in find_fits(shapes)]
        [('CifarResNet-20', None)]
    """
    fits = [fit for candidate in _candidates(shapes, name) if (fit := _fit(*candidate)) is not None]
    best = min((fit.rank for fit in fits), default=0)
    return [fit for fit in fits if fit.rank == best]


def nearest_network(shapes: Shapes, name: str | None = None) -> Misfit | None:
    """The network that differs least from a state_dict of these shapes, and how; None if there is no candidate.

    Args:
        shapes: of a state_dict.
        name: compare with this network alone.
    """
    misfits = [_misfit(*candidate) for candidate in _candidates(shapes, name)]
    return max(misfits, key=lambda misfit: misfit.share, default=None)


Candidate = tuple[Architecture, str, Shapes, dict[str, str]]
"""A family, a name in it, the shapes by the family's own keys, and the key in the state_dict behind each."""


def _candidates(shapes: Shapes, only: str | None = None) -> Iterator[Candidate]:
    of_library = only is not None and all(library_of(only))
    for architecture in [library_architecture(str(only))] if of_library else architectures():
        if only is not None and re.fullmatch(architecture.name_pattern, only) is None:
            continue
        for spelling in (_as_it_is, *architecture.spellings):
            behind = {spelling(key): key for key in shapes}
            if len(behind) < len(shapes) or (spelling is not _as_it_is and list(behind) == list(shapes)):
                continue
            spelled = {key: shapes[original] for key, original in behind.items()}
            for name in architecture.candidates(spelled) if only is None else [only]:
                yield architecture, name, spelled, behind


def _as_it_is(key: str) -> str:
    return key


@lru_cache(maxsize=256)
def _expected(architecture: Architecture, name: str, num_classes: int) -> Shapes | None:
    try:
        return expected_shapes(architecture, name, num_classes)
    except ValueError:  # a family's guess may be a depth that it does not have
        return None


def _trunk(architecture: Architecture, name: str) -> Shapes:
    """The shapes of a network without its head."""
    expected = _expected(architecture, name, 1) or {}
    return {key: shape for key, shape in expected.items() if not key.startswith(f"{architecture.head}.")}


def _fit(architecture: Architecture, name: str, shapes: Shapes, behind: dict[str, str]) -> Fit | None:
    own = shapes.get(f"{architecture.head}.weight", ())
    whole = (_expected(architecture, name, own[0]) if len(own) == 2 else None) or {}
    if whole and shapes == {key: shape for key, shape in whole.items() if not _may_lack(key, shapes)}:
        return Fit(name, own[0], {key: behind[key] for key in shapes})
    trunk = _trunk(architecture, name)
    if not trunk or any(shapes.get(key) != shape for key, shape in trunk.items() if not _may_lack(key, shapes)):
        return None
    rest = {key: shape for key, shape in shapes.items() if key not in trunk}
    keys = {key: behind[key] for key in trunk if key in shapes}
    if not rest:
        return Fit(name, None, keys, "no head")
    expected = _expected(architecture, name, 1) or {}
    features = expected[f"{architecture.head}.weight"][1]
    linear = _only_linear(rest, features)
    if linear is not None:
        head = {f"{architecture.head}.{key.rpartition('.')[2]}": behind[key] for key in rest}
        classes = rest[f"{linear}.weight"][0]
        whole = _expected(architecture, name, classes) or {}
        if any(whole.get(key) != shapes[spelled] for key, spelled in zip(head, rest, strict=True)):
            return None
        return Fit(name, classes, {**keys, **head}, "" if linear == architecture.head else f"the Linear {linear!r}")
    block = _block_of_linears(rest, features)
    return None if block is None else Fit(name, None, keys, f"several layers in {block!r}")


def _may_lack(key: str, shapes: Shapes) -> bool:
    return key.endswith(f".{COUNTER}") and key not in shapes


def _only_linear(rest: Shapes, features: int) -> str | None:
    """The name of a single Linear with `features` inputs, to which all these tensors belong; None if there is none."""
    linear = next(iter(rest)).rpartition(".")[0]
    shape = rest.get(f"{linear}.weight", ())
    if len(shape) != 2 or shape[1] != features or not linear:
        return None
    own = {f"{linear}.weight": shape, f"{linear}.bias": shape[:1]}
    return linear if all(own.get(key) == value for key, value in rest.items()) else None


def _block_of_linears(rest: Shapes, features: int) -> str | None:
    """The name of a module of Linears and norms with `features` inputs, to which all these belong; None if none."""
    blocks = {key.partition(".")[0] for key in rest}
    if len(blocks) > 1 or any(len(shape) > 2 for shape in rest.values()):
        return None
    reads = any(len(shape) == 2 and shape[1] == features for shape in rest.values())
    return blocks.pop() if reads else None


def _misfit(architecture: Architecture, name: str, shapes: Shapes, behind: dict[str, str]) -> Misfit:
    head = shapes.get(f"{architecture.head}.weight", ())
    expected = _expected(architecture, name, head[0] if len(head) == 2 else 1) or {}
    both = [key for key in expected if key in shapes]
    reshaped = [(behind[key], shapes[key], expected[key]) for key in both if shapes[key] != expected[key]]
    missing = [key for key in expected if key not in shapes and not _may_lack(key, shapes)]
    unexpected = [behind[key] for key in shapes if key not in expected]
    return Misfit(name, len(both) - len(reshaped), missing, unexpected, reshaped)
