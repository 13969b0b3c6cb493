"""How a GPU computes is switched for a run and switched back; held here without a GPU, by the switches themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from attention_transfer.config import Config
from attention_transfer.data.loading.loaders import prepare_dataloaders
from attention_transfer.distributed import AcceleratedRuntime, Runtime
from attention_transfer.kernels import Kernels, card_identity, computes_in_tf32
from attention_transfer.seeding import random_state, restore_random_state
from attention_transfer.training.setup.data.loaders import open_loaders

CUDA = torch.device("cuda")
HAS_SWITCHES = hasattr(torch.backends.cudnn, "conv")


@pytest.fixture(autouse=True)
def _switched_back() -> Iterator[None]:
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.benchmark = False


def switches() -> tuple[Any, ...]:
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_float32_means_float32_on_cuda_unless_tf32_is_set_and_the_users_choice_comes_back(before, tf32):
    torch.set_float32_matmul_precision(before)
    earlier = switches()
    kernels = Kernels(CUDA, tf32=tf32)
    assert switches() == (tf32, "high" if tf32 else "highest", False)
    assert computes_in_tf32() == tf32
    kernels.close()
    kernels.close()
    assert switches() == earlier


@pytest.mark.skipif(not HAS_SWITCHES, reason="this PyTorch has no switch for each operation")
def test_operations_that_the_user_has_set_apart_are_set_apart_again():
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert computes_in_tf32()
    kernels = Kernels(CUDA, tf32=False)
    assert switches() == (False, "highest", False)
    kernels.close()
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_kernels_are_timed_only_where_it_is_asked_for_and_never_against_the_users_determinism(monkeypatch):
    torch.backends.cudnn.benchmark = True
    kernels = Kernels(CUDA, tf32=False)
    assert not torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    kernels.choose_by_timing()
    assert not torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    kernels.choose_by_timing()
    assert torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    kernels.close()
    assert torch.backends.cudnn.benchmark


def test_on_a_cpu_nothing_is_switched():
    earlier = switches()
    runtime = AcceleratedRuntime(Config(device="cpu", tf32=True))
    runtime.time_kernels()
    assert switches() == earlier
    runtime.close()


def test_the_gpu_of_a_run_is_the_current_one_until_it_ends(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "_exchange_device", lambda index: calls.append(("to", index)) or 0)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", lambda index: calls.append(("back to", index)))
    kernels = Kernels(torch.device("cuda:1"), tf32=False)
    assert calls == [("to", 1)]
    kernels.close()
    # the way back opens no context on the earlier device: a plain set_device would
    assert calls[1:] == [("back to", 0)]


def test_the_cards_model_and_tf32_are_in_the_cache_key_on_cuda_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert card_identity(torch.device("cpu")) == {}
    kernels = Kernels(CUDA, tf32=True)
    assert card_identity(CUDA) == {"card": "a card", "tf32": True}
    kernels.close()
    kernels = Kernels(CUDA, tf32=False)
    assert card_identity(CUDA) == {"card": "a card", "tf32": False}
    kernels.close()


def test_a_run_on_the_cpu_of_a_machine_with_a_gpu_pins_nothing_and_makes_no_state_there(few_digits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = Config(data_dir=few_digits, image_size=32, num_workers=0, device="cpu")
    loaders = open_loaders(config, Runtime(torch.device("cpu")), None, None, None)
    assert not any(loader.pin_memory for loader in loaders.own)
    loaders.close()
    assert prepare_dataloaders(few_digits, num_workers=0)[0].pin_memory
    assert random_state()["cuda"] == []


def test_a_state_of_several_gpus_does_not_hinder_a_machine_without(monkeypatch):
    state = {**random_state(), "cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}
    restore_random_state(state)
