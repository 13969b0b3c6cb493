"""Numbers gone wrong: told with all there is to know, and never written."""

from __future__ import annotations

import math
import re

import pytest
import torch

from attention_transfer import DivergenceError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(settings):
    return {**settings, "model": "CifarResNet-8", "batch_size": 20, "epochs": 3, "precision": "fp32"}


def finite_everywhere(path):
    """Whether all that a checkpoint holds are numbers: weights, buffers, momenta, sums, history."""
    return are_numbers(read_checkpoint(path))


def are_numbers(thing):
    if isinstance(thing, torch.Tensor):
        return bool(torch.isfinite(thing).all()) if thing.is_floating_point() else True
    if isinstance(thing, dict):
        return all(map(are_numbers, thing.values()))
    if isinstance(thing, list | tuple):
        return all(map(are_numbers, thing))
    return not isinstance(thing, float) or math.isfinite(thing)


def break_after(network, passes, where):
    """From the training pass after `passes` on, `where` puts out no numbers."""
    left = [passes]

    def listen(module, arguments, output):
        if module.training:
            left[0] -= 1
            if left[0] < 0:
                return output * float("nan")
        return output

    dict(network.named_modules())[where].register_forward_hook(listen)


class Side(torch.nn.Module):
    """Its sides are read by nobody but attention; the one that is named grows without bounds after some passes."""

    def __init__(self, passes, where):
        super().__init__()
        self.body = create_model("CifarResNet-8", 10)
        self.first, self.second = (torch.nn.Conv2d(3, 4, 3, stride=2, padding=1) for _ in range(2))
        break_after(self, passes, where)

    def forward(self, x):
        self.first(x)
        self.second(x)
        return self.body(x)


@pytest.mark.parametrize(
    ("where", "component"),
    [
        ("body.linear", "classification"),
        ("body.layer1", "classification"),  # what it spoils behind it is no cause
        ("first", "attention_stage_0"),
        ("second", "attention_stage_1"),
    ],
)
def test_epoch_batch_component_and_learning_rate_are_named_and_the_last_good_checkpoint(
    settings, tmp_path, where, component
):
    settings = {**settings, "layers": ("first:layer1", "second:layer2")}
    with pytest.raises(DivergenceError) as raised:
        train_at(settings, student=Side(6, where), teacher=create_model("CifarResNet-8", 10))
    message = str(raised.value)
    assert re.search(rf"epoch 2, lr 0\.01: .*at batch 2: {component} ", message)
    assert "lower lr or beta" in message
    last = tmp_path / "checkpoints" / "run_last.pth"
    assert f"The last good checkpoint is {last} (after epoch 1)" in message
    assert finite_everywhere(last)


def test_weights_that_are_no_numbers_are_not_written_though_the_loss_was_one(settings, tmp_path):
    student = create_model("CifarResNet-8", 10)
    steps = [0]

    def spoil(gradient):
        steps[0] += 1
        # The very last step of the second epoch: no later loss can tell.
        return gradient * float("inf") if steps[0] == 8 else gradient

    student.linear.weight.register_hook(spoil)
    with pytest.raises(DivergenceError, match=r"linear\.weight is no longer finite after batch 8 of the run") as raised:
        train_at({**settings, "epochs": 2}, student=student, val_loader=None)
    assert "run_last.pth (after epoch 1)" in str(raised.value)
    for path in (tmp_path / "checkpoints").glob("*.pth"):
        assert finite_everywhere(path)


def spoil_weights(network, step):
    """The gradients of a step are no numbers: its loss was one, and the weights are none from then on."""
    steps = [0]

    def spoil(gradient):
        steps[0] += 1
        return gradient * float("inf") if steps[0] == step else gradient

    network.linear.weight.register_hook(spoil)


def spoil_buffers(network, step):
    """Running statistics are overwritten, which no loss of training looks at."""
    steps = [0]

    def spoil(module, arguments, output):
        steps[0] += module.training
        if steps[0] == step:
            module.bn1.running_var = torch.full_like(module.bn1.running_var, float("nan"))

    network.register_forward_hook(spoil)


@pytest.mark.parametrize(("spoil", "named"), [(spoil_weights, r"linear\.weight"), (spoil_buffers, r"bn1\.running_var")])
@pytest.mark.parametrize(("step", "last_good"), [(1, None), (3, "after epoch 0 and 2 batches"), (5, "after epoch 1")])
def test_a_save_inside_an_epoch_writes_no_weights_that_are_no_numbers(
    settings, tmp_path, spoil, named, step, last_good
):
    student = create_model("CifarResNet-8", 10)
    spoil(student, step)
    with pytest.raises(DivergenceError, match=rf"{named} is no longer finite after batch {step} of the run") as raised:
        train_at({**settings, "save_minutes": 1e-9}, student=student)
    assert (f"run_last.pth ({last_good})" if last_good else "There is no checkpoint yet") in str(raised.value)
    paths = list((tmp_path / "checkpoints").glob("*.pth"))
    assert bool(paths) is bool(last_good)
    assert all(map(finite_everywhere, paths))


def test_before_a_save_inside_an_epoch_the_batch_and_component_are_named(settings, tmp_path):
    student = create_model("CifarResNet-8", 10)
    break_after(student, 6, "linear")
    with pytest.raises(DivergenceError, match=r"epoch 2, lr 0\.01: .*at batch 2: classification ") as raised:
        train_at({**settings, "save_minutes": 1e-9}, student=student)
    last = tmp_path / "checkpoints" / "run_last.pth"
    assert f"The last good checkpoint is {last} (after epoch 1 and 2 batches)" in str(raised.value)
    assert all(map(finite_everywhere, last.parent.glob("*.pth")))
