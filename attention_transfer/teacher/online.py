"""The teacher as a network that runs on every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from attention_transfer.data.batches import Batch
from attention_transfer.errors import ConfigError
from attention_transfer.features.maps import attention_map
from attention_transfer.features.stages import stage_names
from attention_transfer.features.taps import Taps
from attention_transfer.modules import like_weights, undisturbed
from attention_transfer.teacher.base import TeacherOutput
from attention_transfer.teacher.runner import FrozenRunner


class LiveTeacher:
    """Runs the teacher's network: in eval mode, without gradients, leaving it as it was found.

    Args:
        model: the teacher's network.
        layers: modules to listen to instead of its stages.
        autocast: makes the context in which it runs in the run's number format.
        needs_maps: False where logits alone are wanted: a network that has no stages is then no error.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        *,
        needs_maps: bool = True,
    ) -> None:
        self.model = model
        self.layers = layers
        self.autocast = autocast
        self.needs_maps = needs_maps

    def __call__(self, batch: Batch) -> TeacherOutput:
        """The maps and logits for the images of `batch`, which must be on the teacher's device."""
        images = like_weights(batch.images, self.model)
        with undisturbed(self.model):
            names = self._stages(images)
            with self.autocast(), Taps(self.model, names) as taps:
                logits = self.model(images)
            return TeacherOutput(tuple(attention_map(features) for features in taps.features), logits)

    def _stages(self, images: Tensor) -> tuple[str, ...]:
        try:
            return stage_names(self.model, images, self.layers)
        except ConfigError:
            if self.needs_maps:
                raise
            return ()


class OnlineTeacher:
    """Runs the teacher on every batch of a training run, as fast as it goes.

    Args:
        make: makes what runs the network, once there are images to find its stages on.

    Attributes:
        recalled: 0, for it remembers nothing; asked: images that it answered so far.
    """

    hits = 0

    def __init__(self, make: Callable[[Tensor], FrozenRunner]) -> None:
        self._make = make
        self._runner: FrozenRunner | None = None
        self.misses = 0

    def __call__(self, batch: Batch) -> TeacherOutput:
        """What the teacher says of the images of `batch`, which must be on its device."""
        if self._runner is None:
            self._runner = self._make(batch.images)
        self.misses += len(batch.images)
        maps, logits = self._runner.run(batch.images, whole=True)
        return TeacherOutput(tuple(maps), logits)
