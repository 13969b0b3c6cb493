"""The teacher as a network that runs on every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from attention_transfer.attention import attention_map
from attention_transfer.data.batches import Batch
from attention_transfer.networks.stages import stage_names
from attention_transfer.taps import Taps, undisturbed
from attention_transfer.teacher.answer import Answer


class LiveTeacher:
    """Runs the teacher's network: in eval mode, without gradients, leaving it as it was found.

    Args:
        model: the teacher's network.
        layers: modules to listen to instead of its stages.
        autocast: makes the context in which it runs in the run's number format.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.layers = layers
        self.autocast = autocast

    def answer(self, batch: Batch) -> Answer:
        """The maps and logits for the images of `batch`, which must be on the teacher's device."""
        with undisturbed(self.model):
            names = stage_names(self.model, batch.images, self.layers)
            with self.autocast(), Taps(self.model, names) as taps:
                logits = self.model(batch.images)
            return Answer(tuple(attention_map(features) for features in taps.features), logits)
