"""What the tests of training share: small data, and loaders of a user's."""

from __future__ import annotations

import torch


def tensors(count=20, classes=4, size=16):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, size, size, generator=generator), torch.arange(count) % classes


def bring(settings):
    return {key: value for key, value in settings.items() if key not in ("data_dir", "image_size")} | {
        "model": "CifarResNet-8"
    }


class InterruptedOnce:
    """A loader that raises KeyboardInterrupt in its second epoch, as Ctrl-C would.

    Its first pass is the look at one batch before training.
    """

    def __init__(self, batches):
        self.batches = batches
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        for i, batch in enumerate(self.batches):
            if self.passes == 3 and i == 1:
                raise KeyboardInterrupt
            yield batch


def assert_same_weights(one, other):
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def without_clock(history):
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "images_per_second")}
        for record in history
    ]


def scalars(folder):
    """(step, value) of all points of each tag in a TensorBoard run, without those that the clock decides."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith(("run/seconds", "run/images"))]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


class Unsized:
    """A loader without length that gives dicts."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return ({"image": x, "label": y} for x, y in self.batches)
