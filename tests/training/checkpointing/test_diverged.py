"""A run whose numbers went wrong says so, whatever has become of its checkpoints."""

from __future__ import annotations

import pytest
import torch

from attention_transfer import DivergenceError, create_model, train_at

BATCHES = 4
"""An epoch."""


@pytest.fixture
def settings(settings):
    return {
        **settings, "model": "CifarResNet-8", "batch_size": 20, "epochs": 4, "precision": "fp32", "save_freq": 1,
    }  # fmt: skip


def diverge(settings, epoch, spoil):
    """What a run says that puts out no numbers from `epoch` on, after `spoil` was at its files."""
    student, passes = create_model("CifarResNet-8", 10), []

    def listen(module, arguments, output):
        passes.append(1) if module.training else None
        if len(passes) <= (epoch - 1) * BATCHES:
            return output
        spoil()
        return output * torch.nan

    student.register_forward_hook(listen)
    with pytest.raises(DivergenceError, match=rf"^epoch {epoch}, lr 0\.01: the loss is not a finite") as raised:
        train_at(settings, student=student)
    return str(raised.value)


def test_a_last_checkpoint_that_is_junk_does_not_hide_the_divergence_and_the_newest_that_verifies_is_named(
    settings, tmp_path
):
    folder = tmp_path / "checkpoints"

    def spoil():
        for name in ("run_last.pth", "run_best.pth", "run_epoch_3.pth"):
            (folder / name).write_bytes(b"junk")

    said = diverge(settings, 4, spoil)
    assert said.endswith(f"The last good checkpoint is {folder / 'run_epoch_2.pth'} (after epoch 2).")


def test_where_no_checkpoint_verifies_the_divergence_is_told_all_the_same(settings, tmp_path):
    def spoil():
        for path in (tmp_path / "checkpoints").glob("*.pth"):
            path.write_bytes(path.read_bytes()[:100])

    assert diverge(settings, 2, spoil).endswith("None of the 3 checkpoints can be read.")
