"""The frozen teacher's network as it runs: the same bits for an image in whatever batch it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attention_transfer.errors import ConfigError
from attention_transfer.features.gradients import input_gradient
from attention_transfer.features.maps import SUM_OF_SQUARES, at_least_float32, normalize
from attention_transfer.features.signals import FEATURES, INPUT_GRADIENT, LOGITS, Needs, Signal, TeacherOutput
from attention_transfer.features.taps import Taps
from attention_transfer.logs import log_once
from attention_transfer.modules import device_of, like_weights, undisturbed, unwrapped
from attention_transfer.networks.registry import network_name
from attention_transfer.teacher.folding import fold_batch_norm

CHUNK = 32
"""Images in a pass."""

MAPS_AND_LOGITS = Needs(maps=(SUM_OF_SQUARES,), logits=True)


class FrozenRunner:
    """Runs a network in eval mode, without gradients, in chunks of one fixed size, and leaves it as it was found.

    The shape of its input decides in which order a processor adds things up, and so the last bits of every output.
    Here that shape is always the same: the last chunk is filled up with zeros, whose outputs are cut off. The output
    for an image depends on neither its place in the batch nor its companions. The number of threads still counts for
    the last bit of the logits: a linear layer of some widths (17 to 27 and 33 to 43 classes among them) is cut up
    otherwise by three threads than by one or two.

    Batch norm is folded when the runner is made: weights that change later have no effect.

    Args:
        model: the teacher's network, on its device; wrappers are looked through.
        names: tapped modules.
        images: [B, 3, H, W], some like those to come; with them folding is checked.
        needs: the signals to tell. Without logits each pass ends after the deepest tapped module.
        autocast: makes the context that gives the number format.
        chunk: images in a pass.
        memory_format: of the images and of a folded network.
        fold: fold batch norm where that is safe, see `fold_batch_norm`.

    Attributes:
        images_seen: images that it has run so far; neither padding nor the images of the check count.
        is_folded: whether batch norm was folded.
        depends_on_batch: whether a batch norm has no statistics of its own and takes those of the batch at hand. Then
            batches run whole and unpadded, and their outputs should not be cached: they are one batch's alone.

    Example:
        >>> from attention_transfer import create_model
        >>> images = torch.rand(5, 3, 32, 32)
        >>> told = FrozenRunner(create_model("CifarResNet-20"), ["layer3"], images).run(images)
        >>> told.maps(SUM_OF_SQUARES)[0].shape, told.logits.shape
        (torch.Size([5, 8, 8]), torch.Size([5, 10]))
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        images: Tensor,
        *,
        needs: Needs = MAPS_AND_LOGITS,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        chunk: int = CHUNK,
        memory_format: torch.memory_format = torch.contiguous_format,
        fold: bool = True,
    ) -> None:
        self.names = tuple(names) if needs.stages else ()
        self.needs = needs
        self.autocast = autocast
        self.chunk = chunk
        self.memory_format = memory_format
        self.device = device_of(model)
        self.images_seen = 0
        self.network = fold_batch_norm(model, images, self.names) if fold else unwrapped(model)
        self.is_folded = self.network is not unwrapped(model)
        if self.is_folded:
            self.network.to(memory_format=memory_format)
        self.depends_on_batch = _normalises_by_batch(self.network)
        self._unfolded = unwrapped(model)
        self._taps = Taps(self.network, self.names, stop=not needs.logits)

    def run(self, images: Tensor, labels: Tensor | None = None, *, whole: bool = False) -> TeacherOutput:
        """The network's signals for images [B, 3, H, W] on its device.

        Args:
            images: B of them.
            labels: [B], for signals that depend on them.
            whole: all at once instead of in chunks, for outputs that nobody caches.

        Returns:
            maps [B, h, w] of each tapped module, normalised, by each map function; logits [B, K]; and what else the
            needs name. Float32, or float64 from a network of float64.

        Raises:
            ConfigError: a tapped module takes no part, or puts out no map; or a signal lacks its labels.
        """
        self.images_seen += len(images)
        told = TeacherOutput()
        if self.names or self.needs.logits:
            size = max(1, len(images)) if whole or self.depends_on_batch else self.chunk
            starts = range(0, max(1, len(images)), size)
            with undisturbed(self.network), self.autocast(), self._taps:
                # A batch of no images still has maps of some size: one chunk of padding tells it.
                parts = [self._pass(images[start : start + size], size) for start in starts]
            told |= {name: _joined([part[name] for part in parts]) for name in parts[0]}
        if self.needs.input_gradient:
            if labels is None:
                raise ConfigError("the gradient by the input depends on the labels, and the batch has none.")
            with undisturbed(self._unfolded):
                gradient = input_gradient(self._unfolded, like_weights(images, self._unfolded), labels)
            told[INPUT_GRADIENT] = Signal(gradient, depends_on_label=True)
        return told

    def _pass(self, images: Tensor, size: int) -> dict[str, Signal]:
        logits = self._taps.run(self._padded(images, size))
        told: dict[str, Signal] = {}
        features = self._taps.features
        if self.names:
            for function in self.needs.maps:
                maps = tuple(_kept(normalize(function(x)), len(images)) for x in features)
                told[function.signal] = Signal(maps)
            if self.needs.features:
                told[FEATURES] = Signal(tuple(x[: len(images)].clone() for x in features))
        if self.needs.logits:
            assert logits is not None
            told[LOGITS] = Signal(_kept(logits, len(images)))
        return told

    def _padded(self, images: Tensor, size: int) -> Tensor:
        # Also a full chunk is copied: so its strides and alignment are the same, whatever it was cut out of.
        shape = (size, *images.shape[1:])
        padded = torch.zeros(shape, dtype=images.dtype, device=images.device).to(memory_format=self.memory_format)
        padded[: len(images)] = images
        return like_weights(padded, self.network)


def _kept(output: Tensor, count: int) -> Tensor:
    return at_least_float32(output[:count])


def _joined(parts: Sequence[Signal]) -> Signal:
    """One signal of several passes."""
    first = parts[0].value
    if isinstance(first, Tensor):
        return Signal(torch.cat([part.value for part in parts if isinstance(part.value, Tensor)]))
    columns = zip(*(part.value for part in parts), strict=True)
    return Signal(tuple(torch.cat(column) for column in columns))


def _normalises_by_batch(network: nn.Module) -> bool:
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_var is None
    ]
    if names:
        log_once(
            f"teacher {network_name(network)}: {names[0]!r} has no running statistics, so that its output for an image "
            "depends on the whole batch",
            logging.WARNING,
        )
    return bool(names)
