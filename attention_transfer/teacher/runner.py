"""The teacher's network as it runs when it is asked: the same bits for an image in whatever company it comes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attention_transfer.features.maps import attention_map
from attention_transfer.features.taps import Taps
from attention_transfer.modules import device_of, like_weights, undisturbed, unwrapped
from attention_transfer.networks.registry import network_name
from attention_transfer.teacher.folding import fold_batch_norm

logger = logging.getLogger(__name__)

CHUNK = 32


class FrozenRunner:
    """Runs a network in eval mode, without gradients, in chunks of one fixed size, and leaves it as it was found.

    The shape of its input decides in which order a processor adds things up, and so the last bits of every answer.
    Here that shape is always the same: the last chunk is filled up with zeros, whose answers are cut off. What it says
    of an image depends on neither its place in the batch nor its companions. The number of threads still counts for
    the last bit of the logits: a linear layer of some widths (17 to 27 and 33 to 43 classes among them) is cut up
    otherwise by three threads than by one or two.

    Batch norm is folded when the runner is made: weights that change later are not heard.

    Args:
        model: the teacher's network, on its device; wrappers are looked through.
        names: tapped modules.
        images: [B, 3, H, W], some like those to come; with them folding is checked.
        needs_logits: False ends each pass after the deepest tapped module.
        autocast: makes the context that gives the number format.
        chunk: images in a pass.
        memory_format: of the images and of a folded network.
        fold: fold batch norm where that is safe, see `fold_batch_norm`.

    Attributes:
        images_seen: how many images it has answered; neither padding nor the images of the check count.
        is_folded: whether batch norm was folded.
        depends_on_batch: whether a batch norm has no statistics of its own and takes those of the batch at hand. Then
            batches run whole and unpadded, and their answers should not be kept: they are one batch's alone.

    Example:
        >>> from attention_transfer import create_model
        >>> images = torch.rand(5, 3, 32, 32)
        >>> maps, logits = FrozenRunner(create_model("CifarResNet-20"), ["layer3"], images).run(images)
        >>> maps[0].shape, logits.shape
        (torch.Size([5, 8, 8]), torch.Size([5, 10]))
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        images: Tensor,
        *,
        needs_logits: bool = True,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        chunk: int = CHUNK,
        memory_format: torch.memory_format = torch.contiguous_format,
        fold: bool = True,
    ) -> None:
        self.names = tuple(names)
        self.needs_logits = needs_logits
        self.autocast = autocast
        self.chunk = chunk
        self.memory_format = memory_format
        self.device = device_of(model)
        self.images_seen = 0
        self.network = fold_batch_norm(model, images, names) if fold else unwrapped(model)
        self.is_folded = self.network is not unwrapped(model)
        if self.is_folded:
            self.network.to(memory_format=memory_format)
        self.depends_on_batch = _normalises_by_batch(self.network)
        self._taps = Taps(self.network, self.names, stop=not needs_logits)

    def run(self, images: Tensor, *, whole: bool = False) -> tuple[list[Tensor], Tensor | None]:
        """What the network says of images [B, 3, H, W] on its device.

        Args:
            images: B of them.
            whole: all at once instead of in chunks: for answers that nobody keeps.

        Returns:
            the attention maps [B, h, w] of each tapped module, normalised, and the logits [B, K], or None if they are
            not needed; all float32.

        Raises:
            ConfigError: a tapped module takes no part, or puts out no map.
        """
        self.images_seen += len(images)
        if not self.names and not self.needs_logits:
            return [], None
        size = max(1, len(images)) if whole or self.depends_on_batch else self.chunk
        with undisturbed(self.network), self.autocast(), self._taps:
            # A batch of no images still has maps of some size: one chunk of padding tells it.
            parts = [self._pass(images[start : start + size], size) for start in range(0, max(1, len(images)), size)]
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        return (columns[:-1], columns[-1]) if self.needs_logits else (columns, None)

    def _pass(self, images: Tensor, size: int) -> list[Tensor]:
        logits = self._taps.run(self._padded(images, size))
        answers = [attention_map(features) for features in self._taps.features]
        if self.needs_logits:
            assert logits is not None
            answers.append(logits)
        return [answer[: len(images)].float() for answer in answers]

    def _padded(self, images: Tensor, size: int) -> Tensor:
        # Also a full chunk is copied: so its strides and alignment are the same, whatever it was cut out of.
        shape = (size, *images.shape[1:])
        padded = torch.zeros(shape, dtype=images.dtype, device=images.device).to(memory_format=self.memory_format)
        padded[: len(images)] = images
        return like_weights(padded, self.network)


def _normalises_by_batch(network: nn.Module) -> bool:
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_var is None
    ]
    if names:
        logger.warning(
            "teacher %s: %r has no running statistics, so that what it says of an image depends on the whole batch",
            network_name(network), names[0],
        )  # fmt: skip
    return bool(names)
