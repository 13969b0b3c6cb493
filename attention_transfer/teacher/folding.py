"""Folding of batch norm into the preceding convolutions, on a copy of the network.

In eval mode batch norm multiplies each channel by a number and adds another, which the weights and bias of the
convolution before it can absorb: the network then saves a pass over each feature map. What may be folded
is found by a forward pass, not by names, and the folded network is checked against the original on images.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention_transfer.features.stages.stage import Stage, as_stages
from attention_transfer.features.taps import Taps
from attention_transfer.modules import device_of, has_hooks, like_weights, undisturbed, unwrapped
from attention_transfer.networks.registry import network_name

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Greatest difference between folded and unfolded, relative to the greatest number in the logits or in a stage."""
PROBED_IMAGES = 8


class Pair(NamedTuple):
    """The names of a convolution and of the batch norm that alone reads its output."""

    conv: str
    norm: str


def fold_batch_norm(model: nn.Module, images: Tensor, stages: Sequence[Stage | str]) -> nn.Module:
    """A copy of a network, for eval mode, with batch norm folded into convolutions wherever that is safe.

    It is safe where a Conv2d runs once in a pass, its output goes to a BatchNorm2d and nowhere else, that runs once,
    too, neither goes by two names or has hooks, and the output of the convolution is not tapped. Each folded batch
    norm is an Identity in the copy, so that all names stay.

    The fold is computed and checked in float32 on the CPU, because a GPU may round float32 to TF32: logits and tapped
    features of copy and original must agree to 1e-4. One line in the log says what was folded, or why nothing was.

    Args:
        model: any network, also inside wrappers; it is not changed.
        images: [B, 3, H, W] like those to come; the first eight are used.
        stages: tapped modules.

    Returns:
        the copy, on the network's device; the unwrapped network itself where nothing can be folded.
    """
    network, stages = unwrapped(model), as_stages(model, stages)
    device, probe = device_of(network), like_weights(images[:PROBED_IMAGES].detach().cpu(), network)
    try:
        original = network if device.type == "cpu" else copy.deepcopy(network).cpu()
        pairs = foldable_pairs(original, probe[:1], [stage.name for stage in stages])
        if not pairs:
            return _unfolded(network, "it has none that can be folded safely")
        folded = copy.deepcopy(original)
        for pair in pairs:
            _fold(folded, pair)
        difference = _difference(original, folded, probe, stages)
    except Exception as error:
        # A user's network may fail in any way when it is copied, or run without one of its modules.
        return _unfolded(network, f"{type(error).__name__}: {error}".splitlines()[0])
    if not difference <= TOLERANCE:
        return _unfolded(network, f"folding changes what it puts out by {difference:.1e}, more than {TOLERANCE:.0e}")
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    logger.info("teacher %s: folded %d of %d batch norms into convolutions", network_name(model), len(pairs), norms)
    return folded.to(device)


def _unfolded(network: nn.Module, reason: str) -> nn.Module:
    logger.info("teacher %s: batch norm is not folded: %s", network_name(network), reason)
    return network


def foldable_pairs(network: nn.Module, images: Tensor, names: Sequence[str]) -> list[Pair]:
    """The pairs that can be folded safely, as a forward pass on the CPU shows; see `fold_batch_norm`.

    Args:
        network: on the CPU, not wrapped.
        images: [B, 3, H, W].
        names: tapped modules.
    """
    every_name = [(name, module) for name, module in network.named_modules(remove_duplicate=False) if name]
    times_named = Counter(module for _, module in every_name)
    alone = {name: module for name, module in every_name if times_named[module] == 1}
    convs = {name: module for name, module in alone.items() if _is_plain_conv(module)}
    norms = {name: module for name, module in alone.items() if _is_plain_norm(module)}
    seen = _Observer()
    modules = dict(network.named_modules())
    tapped = {name: modules[name] for name in names}
    with undisturbed(network), _float32_on_cpu(), seen.watching(convs, norms, tapped), seen:
        network(images)
    return [
        Pair(conv, norm)
        for norm, x in seen.read_by.items()
        for conv, y in seen.put_out.items()
        if x is y and seen.runs[conv] == seen.runs[norm] == 1 and seen.users[id(y)] == {norm}
    ]


def _is_plain_conv(module: nn.Module) -> bool:
    # A subclass may recompute its weights in every pass.
    return type(module) is nn.Conv2d and module.weight.dtype == torch.float32 and not has_hooks(module)


def _is_plain_norm(module: nn.Module) -> bool:
    return type(module) is nn.BatchNorm2d and module.running_var is not None and not has_hooks(module)


class _Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every operation of a forward pass, and so everything that reads or changes a convolution's output."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.runs: Counter[str] = Counter()
        self.put_out: dict[str, Tensor] = {}
        self.read_by: dict[str, Tensor] = {}
        self.users: defaultdict[int, set[str]] = defaultdict(set)
        self._inside: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        user = self._inside or f"the operation {func}"
        for value in tree_leaves((args, kwargs)):
            # An earlier tensor may have had the same id; `put_out` holds references to all that matter.
            if isinstance(value, Tensor):
                self.users[id(value)].add(user)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watching(
        self, convs: dict[str, nn.Module], norms: dict[str, nn.Module], tapped: dict[str, nn.Module]
    ) -> Iterator[None]:
        """Hooks on the modules, removed at exit."""
        with ExitStack() as hooks:
            for name, module in convs.items():
                hooks.callback(module.register_forward_hook(self._conv_ran(name)).remove)
            for name, module in norms.items():
                hooks.callback(module.register_forward_pre_hook(self._norm_runs(name)).remove)
                hooks.callback(module.register_forward_hook(self._norm_ran).remove)
            for module in tapped.values():
                hooks.callback(module.register_forward_hook(self._tap_ran).remove)
            yield

    def _conv_ran(self, name: str) -> Any:
        def listen(module: nn.Module, args: Any, output: Tensor) -> None:
            self.runs[name] += 1
            self.put_out[name] = output
            self.users[id(output)] = set()

        return listen

    def _norm_runs(self, name: str) -> Any:
        def listen(module: nn.Module, args: Any) -> None:
            self.runs[name] += 1
            if args:
                self.read_by[name] = args[0]
            self._inside = name

        return listen

    def _norm_ran(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside = None

    def _tap_ran(self, module: nn.Module, args: Any, output: Any) -> None:
        self.users[id(output)].add("a tap")


@contextmanager
def _float32_on_cpu() -> Iterator[None]:
    with torch.autocast("cpu", enabled=False):
        yield


def _fold(network: nn.Module, pair: Pair) -> None:
    conv, norm = network.get_submodule(pair.conv), network.get_submodule(pair.norm)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    network.set_submodule(pair.norm, nn.Identity().train(norm.training))


def _difference(one: nn.Module, other: nn.Module, images: Tensor, stages: Sequence[Stage]) -> float:
    """The greatest relative difference between two networks' logits and tapped features; NaN where either has one."""
    mine, theirs = _everything(one, images, stages), _everything(other, images, stages)
    differences = [(x - y).abs().max() / y.abs().max().clamp(min=1e-12) for x, y in zip(mine, theirs, strict=True)]
    return float(torch.stack(differences).max())


def _everything(network: nn.Module, images: Tensor, stages: Sequence[Stage]) -> list[Tensor]:
    with undisturbed(network), _float32_on_cpu(), Taps(network, stages) as taps:
        logits = taps.run(images)
    assert logits is not None
    return [logits, *taps.features]
