"""Running the frozen teacher: an image's output is bit-identical in whatever batch it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attention_transfer.errors import ConfigError
from attention_transfer.features.attention_probabilities import AttentionLayout
from attention_transfer.features.gradients import IGNORED_LABEL, input_gradient, widened
from attention_transfer.features.maps import SUM_OF_SQUARES, at_least_float32, normalize
from attention_transfer.features.probe import Probe
from attention_transfer.features.signals import INPUT_GRADIENT, LOGITS, Needs, Signal, TeacherOutput, map_signal
from attention_transfer.features.stages.stage import Stage, as_stages
from attention_transfer.logs import log_once
from attention_transfer.modules import device_of, like_weights, undisturbed, unwrapped
from attention_transfer.networks.preprocessing import UNCHANGED, Preprocessing
from attention_transfer.networks.registry import network_name
from attention_transfer.teacher.folding import fold_batch_norm
from attention_transfer.teacher.number_format import convert_weights

CHUNK = 32
"""Images in a pass on a CPU, and the least on other devices."""
LARGEST_CHUNK = 256
"""The most images in a pass on other devices."""

MAPS_AND_LOGITS = Needs(maps=(SUM_OF_SQUARES,), logits=True)


def chunk_for(device: torch.device, images: int) -> int:
    """Images in a pass whose outputs are cached, as the size of a pass decides about their last bits.

    On a CPU 32. A GPU, which would be idle with so few, gets a whole batch: the power of two at or above it, from 32
    to 256, so that batches of similar sizes share a cache.

    Args:
        device: of the teacher.
        images: in a batch of one process.

    Example:
        >>> chunk_for(torch.device("cpu"), 128), chunk_for(torch.device("cuda"), 100)
        (32, 128)
    """
    if device.type == "cpu":
        return CHUNK
    return int(min(LARGEST_CHUNK, max(CHUNK, 2 ** (images - 1).bit_length())))


class FrozenRunner:
    """Runs a network in eval mode, without gradients, in chunks of one fixed size, and leaves it as it was found.

    The shape of the input decides the order of summation, and so the last bits of every output. Here that shape is
    always the same: the last chunk is padded with zeros, whose outputs are cut off. The output for an image depends on
    neither its position in the batch nor the other images. The number of threads still affects the last bit of the
    logits: a linear layer of some widths (17 to 27 and 33 to 43 classes among them) is split differently by three
    threads than by one or two.

    Batch norm is folded, and weights are converted to autocast's number format, when the runner is made: weights that
    change later have no effect.

    Args:
        model: the teacher's network, on its device, also inside wrappers.
        stages: tapped modules, with or without their readouts.
        images: [B, 3, H, W], like those to come; folding is checked on them.
        needs: the signals to compute. Without logits each pass ends after the deepest tapped module.
        autocast: makes the context that gives the number format.
        chunk: images in a pass.
        memory_format: of the images and of a folded network.
        fold: fold batch norm and convert weights where that is safe, see `fold_batch_norm` and `convert_weights`.
            False: the network itself runs, with the weights that it has at the time.
        layout: of its attention modules; None where attention is not needed.
        to_own_labels: label i of a batch is class to_own_labels[i] of the network; None: its class i.
        preprocess: done to the images of each chunk first.

    Attributes:
        stages: the tapped modules, with their readouts.
        images_seen: images that it has run so far; neither padding nor the images of the check count.
        is_folded: whether batch norm was folded.
        depends_on_batch: whether a batch norm has no running statistics and uses those of the batch. Then batches run
            whole and unpadded, and their outputs should not be cached: they hold for that batch only.

    Example:
        >>> from attention_transfer import create_model
        >>> images = torch.rand(5, 3, 32, 32)
        >>> output = FrozenRunner(create_model("CifarResNet-20"), ["layer3"], images).run(images)
        >>> output.maps(SUM_OF_SQUARES)[0].shape, output.logits.shape
        (torch.Size([5, 8, 8]), torch.Size([5, 10]))
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Sequence[Stage | str],
        images: Tensor,
        *,
        needs: Needs = MAPS_AND_LOGITS,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        chunk: int = CHUNK,
        memory_format: torch.memory_format = torch.contiguous_format,
        fold: bool = True,
        layout: AttentionLayout | None = None,
        to_own_labels: Sequence[int] | None = None,
        preprocess: Preprocessing = UNCHANGED,
    ) -> None:
        self.preprocess = preprocess
        self.stages = as_stages(model, stages) if needs.stages else ()
        self.needs = needs
        self.autocast = autocast
        self.chunk = chunk
        self.memory_format = memory_format
        self.device = device_of(model)
        self.images_seen = 0
        self.network = fold_batch_norm(model, preprocess(images), self.stages) if fold else unwrapped(model)
        self.is_folded = self.network is not unwrapped(model)
        if self.is_folded:
            self.network.to(memory_format=memory_format)
        self.depends_on_batch = _normalises_by_batch(self.network)
        self._unfolded = unwrapped(model)
        if fold:
            seen = like_weights(preprocess(images), self._unfolded).contiguous(memory_format=memory_format)
            self.network = convert_weights(self.network, seen, self.stages, autocast, is_own=self.is_folded)
        self.layout = layout if needs.blocks else None
        self.to_own_labels = None if to_own_labels is None else tuple(to_own_labels)
        self._own_labels: Tensor | None = None
        self._probe = Probe(self.network, needs, self.stages, self.layout, stop=not needs.logits)

    def run(self, images: Tensor, labels: Tensor | None = None, *, whole: bool = False) -> TeacherOutput:
        """The network's signals for images [B, 3, H, W] on its device.

        Args:
            images: [B, 3, H, W].
            labels: [B], for signals that depend on them.
            whole: in one pass instead of in chunks, for outputs that are not cached.

        Returns:
            maps [B, h, w] of each tapped module, normalised, by each map function; logits [B, K]; and the other signals
            that are needed. Float32, or float64 from a network of float64.

        Raises:
            ConfigError: a tapped module does not run, or outputs no map; or a signal lacks its labels.
        """
        self.images_seen += len(images)
        output = TeacherOutput()
        size = max(1, len(images)) if whole or self.depends_on_batch else self.chunk
        starts = range(0, max(1, len(images)), size)
        if self.stages or self.layout or self.needs.logits:
            with undisturbed(self.network), self.autocast(), self._probe:
                # An empty batch still has maps [0, h, w]: one chunk of padding gives their size.
                parts = [self._pass(images[start : start + size], size) for start in starts]
            output |= {name: _concatenated([part[name] for part in parts]) for name in parts[0]}
        if self.needs.gradient:
            if labels is None:
                raise ConfigError("the gradient by the input depends on the labels, and the batch has none.")
            own = self.own_labels(labels)
            gradients = [self._gradient(images[i : i + size], own[i : i + size], size) for i in starts]
            output |= self._gradient_signals(torch.cat(gradients))
        return output

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tapped modules."""
        return tuple(stage.name for stage in self.stages)

    @property
    def has_maps(self) -> bool:
        """Whether it puts out maps of any kind."""
        return bool(self.stages or self.layout or self.needs.maps_of(INPUT_GRADIENT))

    def own_labels(self, labels: Tensor) -> Tensor:
        """Labels [B] as the network numbers its classes; those below 0, of images without a label, stay."""
        if self.to_own_labels is None:
            return labels
        if self._own_labels is None or self._own_labels.device != labels.device:
            self._own_labels = torch.tensor(self.to_own_labels, device=labels.device)
        return torch.where(labels < 0, labels, self._own_labels[labels.clamp_min(0)])

    def _gradient(self, images: Tensor, labels: Tensor, size: int) -> Tensor:
        """The gradient [n, C, H, W] of a chunk, padded as in `_pass`; float32, or float64 as the weights; unfolded."""
        padding = labels.new_full((size - len(labels),), IGNORED_LABEL)
        with undisturbed(self._unfolded), torch.autocast(self.device.type, enabled=False):
            network, padded = widened(self._unfolded), self._padded(images, size)
            pixels = like_weights(padded, self._unfolded) if network is self._unfolded else at_least_float32(padded)
            gradient = input_gradient(network, pixels, torch.cat([labels, padding]))
        return gradient[: len(images)]

    def _gradient_signals(self, gradient: Tensor) -> dict[str, Signal]:
        functions = self.needs.maps_of(INPUT_GRADIENT)
        signals = {f.signal: map_signal(f, [normalize(at_least_float32(f(gradient)))]) for f in functions}
        if self.needs.input_gradient:
            signals[INPUT_GRADIENT] = Signal(gradient, depends_on_label=True)
        return signals

    def _pass(self, images: Tensor, size: int) -> dict[str, Signal]:
        padded = like_weights(self._padded(images, size), self._unfolded).contiguous(memory_format=self.memory_format)
        logits = self._probe.run(padded)
        output = {name: _part(signal, len(images)) for name, signal in self._probe.signals().items()}
        if self.needs.logits:
            assert logits is not None
            output[LOGITS] = Signal(_trimmed(logits, len(images)))
        return output

    def _padded(self, images: Tensor, size: int) -> Tensor:
        # A full chunk is copied as well, so that strides and alignment are always the same.
        shape = (size, *images.shape[1:])
        padded = torch.zeros(shape, dtype=images.dtype, device=images.device).to(memory_format=self.memory_format)
        padded[: len(images)] = images
        return self.preprocess(padded).contiguous(memory_format=self.memory_format)


def _trimmed(output: Tensor, count: int) -> Tensor:
    """The first `count` rows of an output [size, ...], which leaves the padding out; at least float32."""
    return at_least_float32(output[:count])


def _part(signal: Signal, count: int) -> Signal:
    """The first `count` images of a signal of stages: maps [B, h, w] normalised, others [B, ...] as they are."""
    stages = signal.value
    assert isinstance(stages, tuple)
    return Signal(tuple(_trimmed(normalize(x) if x.dim() == 3 else x.clone(), count) for x in stages))


def _concatenated(parts: Sequence[Signal]) -> Signal:
    """One signal [B, ...] from those of several passes."""
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
