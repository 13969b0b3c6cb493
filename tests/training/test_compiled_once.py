"""A student is compiled once for all full batches, and once more for a short last one.

Graphs are counted by a backend that runs them as they are, so that no C++ compiler and no GPU is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from attention_transfer import create_model
from attention_transfer.config import Config
from attention_transfer.distributed import Runtime
from attention_transfer.losses.total import default_terms, needs_of_teacher
from attention_transfer.teacher.build import make_teacher
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.epoch import run_training_epoch, run_validation_epoch
from attention_transfer.training.setup.terms import build_terms

pytestmark = pytest.mark.slow


@pytest.fixture
def counter() -> Iterator[CompileCounter]:
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@contextmanager
def data_parallel(student: nn.Module) -> Iterator[nn.Module]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield nn.parallel.DistributedDataParallel(student)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def alone(student: nn.Module) -> Iterator[nn.Module]:
    yield student


def cnn() -> nn.Module:
    return create_model("CifarResNet-8", 10)


def transformer() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=10)


@pytest.mark.parametrize(
    ("network", "settings", "wrapped"),
    [
        (cnn, {"alpha": 0.5, "hint": 1.0}, alone),
        (cnn, {}, data_parallel),
        (transformer, {"attention": "class_token"}, alone),
    ],
)
def test_thirty_batches_and_a_short_last_one_are_two_graphs_in_every_epoch(network, settings, wrapped, counter):
    torch.manual_seed(0)
    student, teacher = network(), network()
    config, runtime = Config(image_size=16, **settings), Runtime(torch.device("cpu"))
    terms = default_terms(config)
    criteria = [
        Criterion(config, make_teacher(teacher, config, runtime, needs_of_teacher(terms)), runtime, terms)
        for _ in range(2)
    ]
    build_terms(terms, config, student, teacher, torch.rand(2, 3, 16, 16), runtime)
    optimizer = torch.optim.SGD(student.parameters(), 0.01)
    loader = [(torch.rand(4, 3, 16, 16), torch.arange(4)) for _ in range(15)]
    loader.append((torch.rand(2, 3, 16, 16), torch.arange(2)))
    with wrapped(student) as trained:
        compiled = torch.compile(trained, backend=counter)
        for _ in range(2):
            run_training_epoch(criteria[0], compiled, loader, optimizer, runtime)
            run_validation_epoch(criteria[1], compiled, loader, runtime)
    for criterion in criteria:
        criterion.close()
    assert counter.frame_count == 2
