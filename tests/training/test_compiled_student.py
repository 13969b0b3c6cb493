"""A compiled student hears and learns the same; compiled here without a GPU, by the backend that needs none."""

from __future__ import annotations

import pytest
import torch

from attention_transfer import compute_at_loss, create_model, train_at, train_epoch, validate
from attention_transfer.config import Config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import Runtime
from attention_transfer.teacher.build import make_teacher
from attention_transfer.training.criterion.criterion import Criterion

pytestmark = pytest.mark.slow


def test_a_compiled_student_has_the_same_losses_and_gradients_and_is_left_without_hooks():
    torch.manual_seed(0)
    student, teacher = create_model("CifarResNet-8", 10), create_model("CifarResNet-14", 10)
    batches = [Batch(torch.rand(6, 3, 32, 32), torch.arange(6)) for _ in range(3)]
    runtime = Runtime(torch.device("cpu"))
    state = {key: value.clone() for key, value in student.state_dict().items()}

    def gradients(network):
        student.load_state_dict(state)
        criterion = Criterion(Config(), make_teacher(teacher, Config(), runtime), runtime)
        found = []
        for batch in batches:
            student.zero_grad()
            losses = criterion(network, batch)
            losses.total.backward()
            found += [losses.total.detach(), losses.attention.detach()]
            found += [parameter.grad.clone() for parameter in student.parameters()]
        criterion.close()
        return found

    plain = gradients(student)
    compiled = gradients(torch.compile(student, backend="aot_eager"))
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert not any(module._forward_hooks for module in student.modules())


def test_own_loops_leave_no_hooks_on_a_compiled_student():
    student, teacher = create_model("CifarResNet-8", 10), create_model("CifarResNet-8", 10)
    compiled = torch.compile(student, backend="eager")
    loader = [(torch.rand(6, 3, 32, 32), torch.arange(6))]
    config = {"beta": 10.0}
    train_epoch(compiled, teacher, loader, torch.optim.SGD(student.parameters(), 0.01), "cpu", config)
    validate(compiled, teacher, loader, "cpu", config)
    compute_at_loss(compiled, teacher, *loader[0], config).total.backward()
    assert not any(module._forward_hooks for module in student.modules())


def test_on_a_cpu_compile_is_said_to_gain_nothing(tmp_path, few_digits, settings):
    train_at({**settings, "model": "CifarResNet-8", "compile": True})
    assert "compile gains nothing on cpu" in (tmp_path / "logs" / "run.log").read_text()
