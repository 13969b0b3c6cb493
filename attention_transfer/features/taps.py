"""Taps: the outputs of named modules, collected by forward hooks.

The network's code is not changed: the hooks are registered when a `Taps` context opens and removed when it closes,
also after an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn

from attention_transfer.errors import ConfigError
from attention_transfer.features.hooks import Hooked
from attention_transfer.features.stages.stage import Stage, as_stages
from attention_transfer.modules import check_modules, unwrapped


class _AllCollected(BaseException):
    """Ends a forward pass after the last tapped module; not an Exception, so that no network catches it as one."""


class Taps(Hooked):
    """Collects the outputs of named modules while a network runs.

    Args:
        model: any network, also inside wrappers (DistributedDataParallel, torch.compile).
        stages: modules with their readouts; or dotted module names, as in `model.named_modules()`, whose outputs are
            read by the network's registered readout, as [B, C, H, W] for any other network.
        stop: `run` may end the forward pass as soon as every named module has run.
        stay: the hooks stay registered from the first context to `close`, as a compiled network is compiled with them.

    Raises:
        ConfigError: the network has no module of a name; the message lists those that it has.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> with Taps(net, ["0"]) as taps:
        ...     _ = net(torch.zeros(1, 3, 8, 8))
        >>> taps.features[0].shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(
        self, model: nn.Module, stages: Sequence[Stage | str], *, stop: bool = False, stay: bool = False
    ) -> None:
        self._network = unwrapped(model)
        self.stages = as_stages(model, stages)
        self.names = tuple(stage.name for stage in self.stages)
        check_modules(self._network, self.names)
        super().__init__(stay=stay)
        self.stop = stop
        modules = dict(self._network.named_modules())
        self._modules = {name: modules[name] for name in self.names}
        self._outputs: dict[int, Tensor] = {}
        self._calls: Counter[str] = Counter()
        self._run_once: dict[torch.Size, bool] = {}
        self._stopping = False

    def __enter__(self) -> Self:
        self._outputs.clear()
        return super().__enter__()

    def _attach(self, hooks: ExitStack) -> None:
        for name, module in self._modules.items():
            hooks.callback(module.register_forward_hook(self._listener(name)).remove)

    def run(self, images: Tensor) -> Tensor | None:
        """One forward pass of the network inside all wrappers, for `features`; to be called inside the context.

        With `stop`, the first pass at each shape of images is whole, and shows whether each named module runs once
        in a pass. If so, later passes end after the last of them. If one runs again, its last output counts, so
        that no pass is cut short.

        Args:
            images: [B, 3, H, W] on the network's device.

        Returns:
            the network's output, such as logits [B, K]; None if the pass ended early.

        Raises:
            ConfigError: a named module did not run.
        """
        self._outputs.clear()
        self._calls.clear()
        self._stopping = self._run_once.get(images.shape, False)
        try:
            logits: Tensor = self._network(images)
        except _AllCollected:
            return None
        finally:
            self._stopping = False
        if self.stop and self.features:
            self._run_once[images.shape] = all(self._calls[name] == 1 for name in self._modules)
        return logits

    def _listener(self, name: str) -> Any:
        # a module that puts out a tuple may be several stages
        own = [(i, stage.readout) for i, stage in enumerate(self.stages) if stage.name == name]

        def listen(module: nn.Module, args: Any, output: Any) -> None:
            for i, readout in own:
                self._outputs[i] = readout(name, output)

        def listen_and_stop(module: nn.Module, args: Any, output: Any) -> None:
            listen(module, args, output)
            self._calls[name] += 1
            if self._stopping and len(self._outputs) == len(self.stages):
                raise _AllCollected

        # a number that counts up would be a guard of a compiled network: it would be compiled anew for every batch
        return listen_and_stop if self.stop else listen

    def take(self) -> tuple[Tensor, ...]:
        """The `features` [B, C, H, W] of the last forward pass, which are no longer held here afterwards."""
        features = tuple(self.features)
        self._outputs.clear()
        return features

    @property
    def features(self) -> list[Tensor]:
        """The outputs [B, C, H, W] of the last forward pass, in the order of `names`."""
        silent = [name for i, name in enumerate(self.names) if i not in self._outputs]
        if silent:
            raise ConfigError(f"module {silent[0]!r} took no part in the forward pass; choose other layers.")
        return [self._outputs[i] for i in range(len(self.stages))]
