"""Which batch normalisation uses its running statistics where a process has a single image; the same in all processes.

SyncBatchNorm itself needs GPUs, so that what decides about it is asked.
"""

from __future__ import annotations

import pytest
from torch import nn

from attention_transfer.distributed import in_parallel
from attention_transfer.training.epoch import _batch_norm_by_size


@pytest.mark.parametrize(
    ("size", "smallest", "plain", "synchronised"),
    [
        (2, 2, True, True),
        (2, 1, True, False),  # the other process has one image: neither waits for the other
        (1, 1, False, False),
        (1, 0, False, False),  # a stand-in for an empty share
        (3, 0, True, False),
    ],
)
def test_processes_that_wait_for_each_other_normalise_alike(size, smallest, plain, synchronised):
    network = nn.Sequential(nn.BatchNorm2d(3), nn.SyncBatchNorm(3), nn.BatchNorm2d(3).eval())
    with _batch_norm_by_size([network], size, smallest):
        assert [module.training for module in network] == [plain, synchronised, False]
    assert [module.training for module in network] == [True, True, False]


class WithBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("codes", nn.Linear(2, 2).weight.detach())


@pytest.mark.parametrize(("network", "broadcasts"), [(nn.BatchNorm1d(2), False), (WithBuffer(), True)])
def test_running_statistics_are_not_broadcast_in_each_pass_and_other_buffers_are(network, broadcasts, monkeypatch):
    asked = {}
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", lambda student, **settings: asked.update(settings))
    in_parallel(network, next(network.parameters()).device)
    assert asked == {"device_ids": None, "broadcast_buffers": broadcasts, "gradient_as_bucket_view": True}
