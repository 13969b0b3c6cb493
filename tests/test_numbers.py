"""Numbers gone wrong: told with all there is to know, and never written."""

from __future__ import annotations

import re

import pytest
import torch

from attention_transfer import DivergenceError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint


@pytest.fixture
def settings(settings):
    return {**settings, "model": "CifarResNet-8", "batch_size": 20, "epochs": 3, "precision": "fp32"}


def finite_everywhere(path):
    weights = read_checkpoint(path)["model_state_dict"].values()
    return all(bool(torch.isfinite(tensor).all()) for tensor in weights if tensor.is_floating_point())


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


@pytest.mark.parametrize(
    ("where", "component"), [("linear", "classification"), ("layer3", "classification"), ("layer1", "classification")]
)
def test_epoch_batch_component_and_learning_rate_are_named_and_the_last_good_checkpoint(
    settings, tmp_path, where, component
):
    student, teacher = create_model("CifarResNet-8", 10), create_model("CifarResNet-8", 10)
    break_after(student, 6, where)
    with pytest.raises(DivergenceError) as raised:
        train_at(settings, student=student, teacher=teacher)
    message = str(raised.value)
    assert re.search(rf"epoch 2, lr 0\.01: .*at batch 2: {component}", message)
    assert "lower lr or beta" in message
    last = tmp_path / "checkpoints" / "run_last.pth"
    assert f"The last good checkpoint is {last} (after epoch 1)" in message
    assert finite_everywhere(last)


def test_the_stage_whose_attention_is_no_number_is_named(settings, tmp_path):
    class Overflow(torch.nn.Module):
        """Its second stage is read by nobody but attention, and grows without bounds."""

        def __init__(self):
            super().__init__()
            self.body = create_model("CifarResNet-8", 10)
            self.side = torch.nn.Conv2d(3, 4, 3, stride=4, padding=1)

        def forward(self, x):
            self.side(x * (float("inf") if self.training else 1.0))
            return self.body(x)

    teacher = create_model("CifarResNet-8", 10)
    layers = ("body.layer1:layer1", "side:layer2")
    with pytest.raises(DivergenceError, match=r"epoch 1, lr 0\.01: .*at batch 0: attention_stage_1"):
        train_at({**settings, "layers": layers}, student=Overflow(), teacher=teacher)


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
