"""P4 for every loss term: what the loss hears from the cache is what the teacher would say, to 1e-3."""

from __future__ import annotations

import copy

import pytest
import torch

from attention_transfer import compute_at_loss, create_model, prepare_dataloaders
from benchmarks.terms.fidelity import TARGET, errors
from benchmarks.terms.settings import TERMS

pytestmark = pytest.mark.slow

STEPS = 8


@pytest.fixture(scope="module")
def students(few_digits, teacher):
    """As drawn, and after a few steps towards the teacher, whose maps and logits are then nearer."""
    torch.manual_seed(0)
    drawn = create_model("CifarResNet-8", 10)
    taught = copy.deepcopy(drawn).train()
    loader, *_ = prepare_dataloaders(few_digits, 40, augment=True, num_workers=0, image_size=32, augment_views=1)
    optimizer = torch.optim.SGD(taught.parameters(), 0.05, momentum=0.9)
    for batch in [batch for _ in range(STEPS // 2) for batch in loader]:
        optimizer.zero_grad()
        compute_at_loss(taught, teacher, batch.images, batch.labels, {"alpha": 1.0}).total.backward()
        optimizer.step()
    return {"drawn": drawn, "taught": taught}


@pytest.mark.parametrize("name", TERMS)
def test_a_remembered_term_and_its_gradient_are_the_live_teachers(few_digits, teacher, students, tmp_path, name):
    for error in errors(TERMS[name], few_digits, teacher.eval(), students, tmp_path, batches=1).values():
        assert error.loss <= TARGET
        assert error.gradient <= TARGET
