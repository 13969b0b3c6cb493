"""The attention loss inside torch.compile: one graph, and the loss and gradients of the plain run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from attention_transfer.features.maps import energy
from attention_transfer.losses.attention import attention_loss
from attention_transfer.losses.map_distance import map_distance

pytestmark = pytest.mark.slow


@pytest.fixture(params=["aot_eager", "inductor"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "inductor":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            pytest.skip("inductor needs a C++ compiler, and there is none")
    torch._dynamo.reset()
    yield request.param
    torch._dynamo.reset()


def loss(student: list[Tensor], teacher: list[Tensor], mask: Tensor) -> Tensor:
    return attention_loss(student, teacher) + map_distance(energy(student[0]), energy(teacher[0]), mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_the_loss_is_one_graph_with_the_same_value_and_gradients(backend, dtype):
    formats = (torch.contiguous_format, torch.channels_last)
    generator = torch.Generator().manual_seed(0)

    def stages(*shapes: tuple[int, ...]) -> list[Tensor]:
        drawn = [torch.randn(2, *shape, generator=generator) for shape in shapes]
        return [x.to(dtype).contiguous(memory_format=form) for x, form in zip(drawn, formats, strict=True)]

    student, teacher = stages((8, 6, 6), (16, 4, 4)), stages((12, 8, 8), (24, 4, 4))
    student[0][1] = 0
    student = [x.requires_grad_() for x in student]
    mask = torch.ones(2, 8, 8)
    mask[0, :2] = 0
    plain = loss(student, teacher, mask)
    expected = torch.autograd.grad(plain, student)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)(student, teacher, mask)
    gradients = torch.autograd.grad(compiled, student)
    torch.testing.assert_close(compiled, plain)
    for ours, theirs, form in zip(gradients, expected, formats, strict=True):
        assert ours.is_contiguous(memory_format=form)
        torch.testing.assert_close(ours, theirs, rtol=2 * torch.finfo(dtype).eps + 1e-5, atol=1e-8)
