"""Cells of maps that show no image are compared nowhere."""

from __future__ import annotations

import pytest
import torch

from attention_transfer.features.coverage import covered_cells, only_where_shown
from attention_transfer.features.maps import SUM_OF_SQUARES
from attention_transfer.features.pairing import StagePair
from attention_transfer.features.signals import ATTENTION, FEATURES, LOGITS, Signal, StudentOutput, TeacherOutput
from attention_transfer.losses.attention import AttentionTransfer
from attention_transfer.losses.term import LossInputs

LEFT = torch.arange(16) < 8


def shown(count=2):
    """Of images of 16 x 16, the left half shows something."""
    return LEFT.expand(count, 16, 16)


def test_a_cell_is_covered_where_half_of_its_pixels_show_something():
    pixels = torch.zeros(1, 16, 16, dtype=torch.bool)
    pixels[:, :, :10] = True
    assert covered_cells(pixels, (4, 4))[0, 0].tolist() == [1, 1, 1, 0]
    assert covered_cells(pixels, (1, 1)).tolist() == [[[1.0]]]


def test_what_maps_hold_where_there_is_no_image_changes_neither_loss_nor_gradient():
    torch.manual_seed(0)
    student, teacher = torch.rand(2, 8, 8, requires_grad=True), torch.rand(2, 8, 8)
    elsewhere = teacher.clone()
    elsewhere[:, :, 4:] = 100 * torch.rand(2, 8, 4)
    term = AttentionTransfer(1.0)

    def loss(maps):
        answer = only_where_shown(TeacherOutput({SUM_OF_SQUARES.signal: Signal((maps,))}), shown())
        output = StudentOutput({SUM_OF_SQUARES.signal: Signal((student,)), LOGITS: Signal(torch.zeros(2, 3))})
        return term(LossInputs(output, answer, (StagePair(0, 0, (8, 8)),)))["attention"]

    assert torch.equal(loss(teacher), loss(elsewhere))
    (gradient,) = torch.autograd.grad(loss(teacher), student)
    assert not gradient[:, :, 4:].any()
    assert gradient[:, :, :4].all()


def test_what_was_not_covered_stays_so_and_other_signals_stay_as_they_are():
    before = torch.ones(2, 4, 4)
    before[:, 0] = 0
    maps = Signal((torch.rand(2, 4, 4),), coverage=(before,))
    output = TeacherOutput({"maps: x": maps, LOGITS: Signal(torch.rand(2, 3))})
    covered = only_where_shown(output, shown())
    assert covered["maps: x"].coverage[0][0].tolist() == [[0, 0, 0, 0]] + 3 * [[1, 1, 0, 0]]
    assert covered[LOGITS] is output[LOGITS]
    assert maps.coverage[0] is before


@pytest.mark.parametrize("output", [TeacherOutput(), TeacherOutput({"maps: x": Signal((torch.rand(2, 4, 4),))})])
def test_where_everything_is_shown_nothing_is_done(output):
    assert only_where_shown(output, None) is output


def test_attention_probabilities_have_no_cells_to_cover():
    """[B, heads, N, N] are queries by keys, whatever they look like."""
    output = TeacherOutput(
        {ATTENTION: Signal((torch.rand(2, 3, 17, 17),)), FEATURES: Signal((torch.rand(2, 3, 4, 4),))}
    )
    covered = only_where_shown(output, shown())
    assert covered[ATTENTION].coverage is None
    assert covered[FEATURES].coverage is not None
