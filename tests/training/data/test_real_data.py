"""Whole runs on the photos and on CIFAR-10 of shared/, where it is there."""

from __future__ import annotations

import copy
import tarfile
from pathlib import Path

import pytest
import torch

from attention_transfer import (
    create_model,
    evaluate_model,
    extract_attention_maps,
    load_teacher_model,
    prepare_dataloaders,
    train_at,
    train_epoch,
)
from benchmarks import fidelity

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def cifar_folder(shared_folder, tmp_path_factory):
    """Of CIFAR-10 as JPEG files: 40 training and 50 test images of each class."""
    archive = shared_folder / "data" / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip("shared/ has no data/cifar10-jpeg.tar.xz")
    root: Path = tmp_path_factory.mktemp("cifar")
    left: dict[tuple[str, str], int] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isfile():
                continue
            split, label, _ = Path(member.name).parts[-3:]
            if left.setdefault((split, label), 40 if split == "train" else 50) > 0:
                left[split, label] -= 1
                (root / split / label).mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(member)
                assert source is not None
                (root / split / label / Path(member.name).name).write_bytes(source.read())
    return root


@pytest.fixture(scope="session")
def resnet56(shared_folder):
    return load_teacher_model(shared_folder / "weights" / "cifar10-jpeg-resnet56.pth", 10, "cpu")


def test_the_teacher_at_hand_knows_cifar(cifar_folder, resnet56):
    *_, test = prepare_dataloaders(cifar_folder, 100, image_size=32, num_workers=0)
    report = evaluate_model(resnet56, test)
    assert report["samples"] == 500
    assert report["accuracy"] > 0.85
    assert report["top5_accuracy"] > 0.98


def test_the_teacher_looks_elsewhere_for_other_images(cifar_folder, resnet56):
    *_, test = prepare_dataloaders(cifar_folder, 8, image_size=32, num_workers=0)
    images, _ = next(iter(test))
    for stage in extract_attention_maps(resnet56, images):
        flat = stage.flatten(1)
        similar = flat @ flat.T
        assert similar.fill_diagonal_(0).max() < 0.999


def test_a_student_comes_to_look_where_the_teacher_of_cifar_looks(cifar_folder, resnet56, tmp_path):
    results = train_at(
        {
            "model": "CifarResNet-8", "data_dir": str(cifar_folder), "image_size": 32, "num_workers": 0, "epochs": 4,
            "lr": 0.05, "alpha": 0.1, "augment": True, "rotation": 0.0, "color_jitter": 0.0, "device": "cpu",
            "precision": "fp32", "teacher_precision": "fp32", "figure_freq": 0,
            "save_dir": str(tmp_path / "c"), "log_dir": str(tmp_path / "l"),
        },
        teacher=resnet56,
    )  # fmt: skip
    history = results["training_history"]
    assert results["config"]["class_names"][:2] == ("airplane", "automobile")
    assert history[-1]["train_attention"] < 0.7 * history[0]["train_attention"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert results["test_results"]["samples"] == 500


@pytest.fixture(scope="module")
def students(cifar_folder, resnet56):
    """A student before its training, after one epoch, and after three."""
    torch.manual_seed(0)
    student = create_model("CifarResNet-8", 10)
    loader, *_ = prepare_dataloaders(cifar_folder, 32, image_size=32, num_workers=0, augment=True)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    seen = [copy.deepcopy(student)]
    for epochs in (1, 2):
        for _ in range(epochs):
            train_epoch(student, resnet56, loader, optimizer, "cpu", {"beta": 1000.0})
        seen.append(copy.deepcopy(student))
    return seen


@pytest.mark.parametrize("way", fidelity.HELD_TO_TARGET, ids=str)
def test_what_a_student_hears_from_memory_is_what_the_users_teacher_says(
    cifar_folder, resnet56, students, tmp_path, way
):
    dataset, batches = fidelity.some_batches(cifar_folder, 2, 64)
    heard = fidelity.remembered(resnet56, dataset, tmp_path, way)
    for student in students:
        found = fidelity.measure(student, heard, resnet56, batches)
        assert max(*found.maps, found.loss, found.gradient) <= fidelity.TARGET
    assert heard.misses == len(dataset)  # all of it was read, none made anew


def test_the_photos_are_learned_from_for_an_epoch(photos_folder, tmp_path):
    results = train_at(
        {
            "model": "CifarResNet-8", "data_dir": str(photos_folder), "image_size": 64, "num_workers": 2, "epochs": 1,
            "augment": True, "precision": "fp32", "device": "cpu", "save_dir": str(tmp_path / "c"),
            "log_dir": str(tmp_path / "l"),
        }
    )  # fmt: skip
    assert results["config"]["class_names"] == ("ants", "bees")
    assert results["test_results"]["samples"] > 30
    assert 0 < results["training_history"][0]["train_loss"] < 5
