"""What a run computes in float32, whatever the number format of its networks; gradients of float16 are scaled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attention_transfer import create_model
from attention_transfer.config import resolve_config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import AcceleratedRuntime, Runtime
from attention_transfer.teacher.build import make_teacher
from attention_transfer.training.criterion.criterion import Criterion

pytestmark = pytest.mark.speed


def runtime():
    return AcceleratedRuntime(resolve_config({"device": "cpu"}))


def channels_last():
    torch.manual_seed(0)
    return create_model("CifarResNet-8", 10).to(memory_format=torch.channels_last)


def test_a_runtime_takes_another_format_when_the_networks_are_there():
    here, conv, image = runtime(), nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)
    assert here.precision == "fp32"
    here.use_precision("bf16")
    with here.autocast():
        assert conv(image).dtype == torch.bfloat16
    with here.autocast("fp32"):
        assert conv(image).dtype == torch.float32


def test_losses_and_maps_are_float32_where_the_networks_run_in_bf16():
    here = Runtime(torch.device("cpu"), "bf16")
    config = resolve_config({"alpha": 0.5})
    student = channels_last()
    criterion = Criterion(config, make_teacher(channels_last(), config, here), here)
    losses = criterion(student, Batch(torch.rand(4, 3, 32, 32), torch.arange(4)))
    assert losses.logits.dtype == torch.bfloat16
    parts = [losses.total, losses.classification, losses.kd, losses.attention, *losses.per_stage]
    assert {part.dtype for part in parts} == {torch.float32}
    losses.total.backward()
    assert {parameter.grad.dtype for parameter in student.parameters()} == {torch.float32}


def test_fp16_scales_gradients_and_passes_over_a_step_that_overflows():
    here = runtime()
    here.use_precision("fp16")
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    here.step((weight * 2).sum(), optimizer)
    assert weight.item() == 0.0
    scale = here.scaler_state()["scale"]
    here.step((weight * float("inf")).sum(), optimizer)
    assert weight.item() == 0.0
    state = here.scaler_state()
    assert state["scale"] == scale / 2
    other = runtime()
    other.use_precision("fp16")
    other.load_scaler_state(state)
    assert other.scaler_state() == state
    other.use_precision("bf16")
    assert other.scaler_state() is None
