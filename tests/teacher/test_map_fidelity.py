"""Maps kept in float16: loss and student gradient are those of the live teacher in float32."""

from __future__ import annotations

import pytest
import torch
from support.transformers import shaken, tiny_vit

from attention_transfer import create_model
from attention_transfer.config import resolve_config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import Runtime
from attention_transfer.losses.total import default_terms, needs_of_teacher
from attention_transfer.teacher.base import Teacher, TeacherOutput
from attention_transfer.teacher.build import make_teacher
from attention_transfer.teacher.cache.store import OutputShape
from attention_transfer.training.criterion.criterion import Criterion

MOST = 1e-3


class Kept:
    """A teacher whose maps were stored and read again."""

    def __init__(self, teacher: Teacher, functions):
        self.teacher, self.functions = teacher, functions

    def __call__(self, batch: Batch) -> TeacherOutput:
        output = self.teacher(batch)
        shape = OutputShape.of(output, self.functions, "fp16")
        rows = shape.encode_maps(shape.maps_of(output))
        return shape.output(shape.decode_maps(rows, batch.images.device), output.logits)


def networks(kind):
    if kind == "class_token":
        # a fresh transformer attends evenly, and two of them alike: what is left to learn is then rounding
        return tiny_vit(0), shaken(tiny_vit(1, depth=6))
    torch.manual_seed(0)
    return create_model("CifarResNet-8", 10), create_model("ResNet18", 10)


def difference(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("kind", ["gradient", "class_token"])
def test_a_map_that_was_kept_teaches_what_the_live_teacher_does(kind, eighty_digits):
    from attention_transfer import prepare_dataloaders

    config = resolve_config({"attention": kind, "device": "cpu", "beta": 1.0})
    student, teacher = networks(kind)
    loader, *_ = prepare_dataloaders(eighty_digits, batch_size=16, image_size=32, num_workers=0)
    batch, runtime, functions = next(iter(loader)), Runtime(torch.device("cpu")), default_terms(config)[1].needs.maps
    live = make_teacher(teacher, config, runtime, needs_of_teacher(default_terms(config)))
    found = []
    for each in (live, Kept(live, functions)):
        losses = Criterion(config, each, runtime)(student, batch)
        gradients = torch.autograd.grad(losses.attention, list(student.parameters()), allow_unused=True)
        flat = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        found.append((losses.attention.detach(), flat))
    (loss, gradient), (kept_loss, kept_gradient) = found
    assert 0 < abs(float(kept_loss - loss)) <= MOST * float(loss)
    assert 0 < difference(kept_gradient, gradient) <= MOST
    print(f"{kind}: loss {abs(float(kept_loss / loss) - 1):.1e}, gradient {difference(kept_gradient, gradient):.1e}")
