"""Copies of a student in the threads of nn.DataParallel would overwrite each other's features: it is refused."""

from __future__ import annotations

import pytest
import torch
from support.runs import bring, tensors
from torch import nn

from attention_transfer import ConfigError, compute_at_loss, create_model, train_at, train_epoch


def parallel(devices, inside=False):
    """A DataParallel over so many devices, whether this machine has them or not."""
    wrapped = nn.DataParallel(create_model("CifarResNet-8", 4))
    wrapped.device_ids = list(range(devices))
    return nn.Sequential(wrapped, nn.Identity()) if inside else wrapped


@pytest.mark.parametrize(("inside", "what"), [(False, "it is"), (True, "its module '0' is")])
def test_a_student_in_data_parallel_over_several_devices_is_refused_with_the_remedy(settings, inside, what):
    student, (images, labels) = parallel(2, inside), tensors()
    words = f"{what} an nn.DataParallel over 2 devices, .* accelerate launch or torchrun: .* DistributedDataParallel"
    with pytest.raises(ConfigError, match=words):
        train_at(bring(settings), [(images, labels)], student=student)
    with pytest.raises(ConfigError, match=words):
        compute_at_loss(student, None, images, labels)
    with pytest.raises(ConfigError, match=words):
        train_epoch(student, None, [(images, labels)], torch.optim.SGD(student.parameters(), lr=0.1), "cpu")


def test_on_one_device_it_is_the_network_itself(teacher):
    student, (images, labels) = parallel(0), tensors(4, size=32)
    assert compute_at_loss(student, teacher, images, labels, {"beta": 1.0}).attention > 0
