"""A run goes on only with a teacher that sees of the images what it saw; version 0.1's teachers saw the run's own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support.runs import bring, tensors
from torch.utils.data import DataLoader, TensorDataset

from attention_transfer import TeacherError, create_model, train_at
from attention_transfer.checkpoint import read_checkpoint
from attention_transfer.config import resolve_config
from attention_transfer.distributed import Runtime
from attention_transfer.networks.preprocessing import TrainedOn, sees
from attention_transfer.training.checkpointing.resume import OF_TEACHERS_IMAGES, find_resume_point

FIXTURE = Path(__file__).parents[2] / "fixtures" / "version_0_1" / "stopped_last.pth"
HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def loader():
    return DataLoader(TensorDataset(*tensors()), batch_size=10)


def teacher_trained_on(mean, teacher):
    teacher = copy.deepcopy(teacher)
    teacher.trained_on = TrainedOn(mean, HALF, "its checkpoint")
    return teacher


def test_a_teacher_of_the_same_weights_that_sees_other_images_is_refused_with_both(settings, tmp_path, loader):
    settings, path = bring(settings), tmp_path / "checkpoints" / "run_last.pth"
    network = create_model("CifarResNet-8", 4)
    train_at(settings, loader, teacher=teacher_trained_on(HALF, network))
    resumed, other = {"resume": str(path), "epochs": 2}, teacher_trained_on((0.1, 0.2, 0.3), network)
    with pytest.raises(TeacherError) as raised:
        train_at(resumed, loader, teacher=other)
    for words in ("saw images of mean (0.5, 0.5, 0.5)", "would see images of mean (0.1, 0.2, 0.3)", "set teacher_mean"):
        assert words in str(raised.value)

    followed = train_at({**resumed, "teacher_mean": HALF}, loader, teacher=other)
    assert len(followed["training_history"]) == 2
    assert followed["config"]["teacher_mean"] == HALF


def test_what_a_teacher_sees_is_told_apart_by_mean_std_and_size():
    network = create_model("CifarResNet-8", 4)
    changes = [{}, {"teacher_mean": (0.5, 0.5, 0.500001)}, {"teacher_std": HALF}, {"teacher_image_size": 48}]
    told = [sees(network, resolve_config(change)) for change in changes]
    assert len(set(told)) == len(changes)
    assert told[0] == "images of mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225) at the run's image size"


def test_a_run_of_version_0_1_goes_on_with_the_runs_images_for_its_teacher():
    assert {read_checkpoint(FIXTURE)["config"][key] for key in OF_TEACHERS_IMAGES} == {"run"}
    config = find_resume_point(resolve_config({"resume": str(FIXTURE)}), Runtime(torch.device("cpu"))).config
    network = teacher_trained_on(HALF, create_model("CifarResNet-8", 10))
    assert sees(network, config) == sees(create_model("CifarResNet-8", 10), config)
