"""The frozen teacher's weights are converted to its number format once, and its answers keep every bit."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import VisionTransformer

from attention_transfer import create_model
from attention_transfer.features.maps import SUM_OF_SQUARES
from attention_transfer.networks.registry import taps_of
from attention_transfer.teacher.runner import FrozenRunner

bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16)
IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Conversions(TorchDispatchMode):
    """Counts the float32 tensors that are converted to bfloat16, apart from those as large as a batch's features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._weights = {parameter.data_ptr() for parameter in network.parameters()}
        self.of_weights = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self._weights:
            self.of_weights += 1
        return function(*args, **(kwargs or {}))


def cnn() -> nn.Module:
    return create_model("CifarResNet-8", 10)


def transformer() -> nn.Module:
    return VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=10)


def ran(runner: FrozenRunner) -> list[Tensor]:
    output = runner.run(IMAGES)
    return [*output.maps(SUM_OF_SQUARES), output.logits]


def runner_of(network: nn.Module, autocast: Any = bfloat16, **settings: Any) -> FrozenRunner:
    stages = taps_of(network) if hasattr(network, "card") else ()
    return FrozenRunner(network, stages, IMAGES, autocast=autocast, chunk=4, **settings)


@pytest.mark.parametrize("make", [cnn, transformer])
def test_no_weight_is_converted_in_a_pass_and_every_bit_of_an_answer_stays(make, monkeypatch):
    torch.manual_seed(0)
    network = make()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    runner = runner_of(network)
    with Conversions(runner.network) as conversions:
        answers = ran(runner)
    assert conversions.of_weights == 0
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
    monkeypatch.setattr("attention_transfer.teacher.runner.convert_weights", lambda network, *_, **__: network)
    runner = runner_of(network)
    with Conversions(runner.network) as conversions:
        expected = ran(runner)
    assert conversions.of_weights > 0
    for mine, other in zip(answers, expected, strict=True):
        assert torch.equal(mine, other)


def test_in_float32_nothing_is_converted():
    assert {p.dtype for p in runner_of(cnn(), nullcontext).network.parameters()} == {torch.float32}


def test_a_network_that_may_still_change_is_not_copied():
    network = cnn()
    assert runner_of(network, fold=False).network is network


class LooksAtItsWeights(nn.Module):
    """Computes in the number format of its own weights, and so would compute something else."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean(dim=(2, 3)).to(self.head.weight.dtype)
        with torch.autocast("cpu", enabled=False):
            return F.linear(x, self.head.weight, self.head.bias)


def test_a_network_whose_answers_would_change_stays_as_it_is_and_that_is_logged(caplog):
    torch.manual_seed(0)
    network = LooksAtItsWeights()
    with caplog.at_level(logging.INFO):
        runner = runner_of(network)
    assert {p.dtype for p in runner.network.parameters()} == {torch.float32}
    assert "LooksAtItsWeights: its weights are converted in every pass" in caplog.text
