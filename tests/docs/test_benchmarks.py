"""The arms of `make bench`: they train what they say they train, and their figures are what they claim to be."""

from __future__ import annotations

import copy
import inspect
import statistics as reference
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from attention_transfer import compute_at_loss, create_model, prepare_dataloaders
from attention_transfer.errors import DataError
from benchmarks.arms import bare, benchmark_data, textbook, torchdistill_arm
from benchmarks.measuring.statistics import Arm, ratio_interval

pytestmark = pytest.mark.slow

BETA = 1000.0
EPOCH = 4  # batches of 30 images of few_digits

needs_torchdistill = pytest.mark.skipif(
    torchdistill_arm.left_out() is not None, reason=torchdistill_arm.left_out() or "it is installed"
)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return create_model("CifarResNet-8", 10)


@pytest.fixture
def teacher():
    torch.manual_seed(1)
    return create_model("CifarResNet-14", 10)


def sgd(network):
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def digits(folder):
    return textbook.training_set(folder, 32)


def textbook_arm(student, teacher, folder, num_workers=0):
    student, teacher = textbook.WithFeatures(student), textbook.WithFeatures(teacher)
    loader, optimizer = textbook.training_loader(digits(folder), 30, num_workers), sgd(student)
    return Arm("textbook", lambda: textbook.train_epoch(student, teacher, loader, optimizer, BETA))


def bare_arm(student, folder, precision="fp32"):
    loader, *_ = prepare_dataloaders(folder, 30, augment=True, num_workers=0, image_size=32)
    optimizer = sgd(student)
    return Arm("bare", lambda: bare.train_epoch(student, loader, optimizer, precision))


def torchdistill_box(student, teacher, folder):
    return torchdistill_arm.make_box(
        student, teacher, digits(folder), batch_size=30, num_workers=0, lr=0.05, momentum=0.9, weight_decay=5e-4,
        beta=BETA,
    )  # fmt: skip


def learns(arm, batches=40):
    """Whether the last epochs of some blocks have a lower loss than the first ones."""
    losses = [loss for _ in range(2) for loss in arm.block(batches // 2).losses]
    return reference.mean(losses[-EPOCH:]) < 0.9 * reference.mean(losses[:EPOCH])


def test_the_textbook_minimises_what_we_minimise(student, teacher):
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6)
    ours = compute_at_loss(student.train(), teacher.eval(), images, labels, {"beta": BETA}).total
    student, teacher = textbook.WithFeatures(student), textbook.WithFeatures(teacher)
    theirs = textbook.batch_loss(student, teacher, images, labels, BETA)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_the_textbook_draws_views_as_ours_are_drawn(digits_folder):
    ours, *_ = prepare_dataloaders(digits_folder, 600, augment=True, num_workers=0, image_size=32)
    theirs = textbook.training_loader(digits(digits_folder), 600, 0)
    (mine, _), (its, _) = next(iter(ours)), next(iter(theirs))
    assert its.shape == mine.shape
    assert float(its.mean()) == pytest.approx(float(mine.mean()), abs=0.1)
    assert float(its.std()) == pytest.approx(float(mine.std()), abs=0.1)


def test_the_frozen_file_and_the_bare_loop_stay_short():
    assert len(Path(textbook.__file__).read_text().splitlines()) <= 80
    assert len(inspect.getsource(bare.train_epoch).splitlines()) <= 30


def test_the_textbook_learns_the_digits_and_leaves_the_teacher_alone(student, teacher, few_digits):
    before = copy.deepcopy(teacher.state_dict())
    assert learns(textbook_arm(student, teacher, few_digits))
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_the_textbook_loads_in_workers_too(student, teacher, few_digits):
    block = textbook_arm(student, teacher, few_digits, num_workers=1).block(2 * EPOCH)
    assert block.images == 2 * 120


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bare_loop_learns_the_digits(student, few_digits, precision):
    assert learns(bare_arm(student, few_digits, precision))


@needs_torchdistill
def test_torchdistill_learns_the_digits_and_leaves_the_teacher_alone(student, teacher, few_digits):
    before = copy.deepcopy(teacher.state_dict())
    box = torchdistill_box(student, teacher, few_digits)
    assert learns(Arm("torchdistill", lambda: torchdistill_arm.train_epoch(box)))
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


@needs_torchdistill
def test_torchdistill_minimises_what_we_minimise(student, teacher, few_digits):
    ours_student, ours_teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    box = torchdistill_box(student, teacher, few_digits)
    images, labels = torch.rand(6, 3, 32, 32), torch.arange(6)
    ours = compute_at_loss(ours_student, ours_teacher, images, labels, {"beta": BETA}).total
    torch.testing.assert_close(box.forward_process(images, labels, {}), ours, rtol=1e-5, atol=1e-6)


def test_where_torchdistill_is_missing_its_arm_says_how_to_install_it(student, teacher, few_digits, monkeypatch):
    monkeypatch.setattr(torchdistill_arm, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchdistill"):
        torchdistill_box(student, teacher, few_digits)


def test_a_block_goes_on_where_the_last_one_ended():
    arm = Arm("counting", lambda: iter([(8, 3.0), (8, 2.0), (4, 1.0)]))
    first, second = arm.block(2), arm.block(2)
    assert (first.images, first.losses) == (16, (3.0, 2.0))
    assert (second.images, second.losses) == (12, (1.0, 3.0))
    assert second.rate == 12 / second.seconds
    with pytest.raises(ValueError, match="loader is empty"):
        Arm("nothing", lambda: iter([])).block(1)


def test_the_interval_holds_the_true_ratio_about_95_times_in_100():
    generator, held = np.random.default_rng(0), 0
    for _ in range(200):
        speed = generator.lognormal(sigma=0.3, size=15)
        mine = 1.3 * speed * generator.lognormal(sigma=0.05, size=15)
        _, low, high = ratio_interval(mine.tolist(), speed.tolist())
        held += low <= 1.3 <= high
    assert 180 <= held <= 199


def test_ratios_need_pairs_of_positive_figures():
    assert ratio_interval([2.0, 4.0], [1.0, 2.0]) == (2.0, 2.0, 2.0)
    for mine, theirs in (([1.0, 2.0], [1.0]), ([1.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])):
        with pytest.raises(ValueError, match="a ratio needs"):
            ratio_interval(mine, theirs)


def test_the_slice_of_cifar_is_stratified_and_always_the_same(shared_folder, tmp_path):
    archive = shared_folder / "data" / "cifar10-jpeg.tar.xz"
    first, again = (benchmark_data.cifar_slice(archive, tmp_path / name, 100) for name in "ab")
    names = {path.relative_to(first): path.read_bytes() for path in first.rglob("*.jpg")}
    assert names == {path.relative_to(again): path.read_bytes() for path in again.rglob("*.jpg")}
    counts = {"train": 10, "val": 20, "test": 20}
    for split, count in counts.items():
        assert [len(list(folder.iterdir())) for folder in sorted((first / split).iterdir())] == [count] * 10
    train, val = ({path.parts[1:] for path in names if path.parts[0] == split} for split in ("train", "val"))
    assert not train & val


@pytest.mark.parametrize(
    ("images", "says"), [(101, "multiple of the number of classes"), (100, r"train/\d has 25 images, fewer than 30")]
)
def test_a_slice_that_the_archive_cannot_give_is_refused(image_folder, tmp_path, images, says):
    root = image_folder({f"{split}/{label}": 25 for split in ("train", "test") for label in range(10)})
    with tarfile.open(tmp_path / "archive.tar.xz", "w:xz") as tar:
        tar.add(root, arcname=".")
    with pytest.raises(DataError, match=says):
        benchmark_data.cifar_slice(tmp_path / "archive.tar.xz", tmp_path, images)
    assert not (tmp_path / f"cifar10-{images}").exists()


def test_the_photos_get_640_names_and_take_no_more_room(shared_folder, tmp_path):
    data = benchmark_data.photos_640(shared_folder / "data" / "hymenoptera-photos.tar", tmp_path)
    links = list((data / "train").glob("*/*"))
    assert len(links) == 640
    assert len({link.stat().st_ino for link in links}) == 244
    assert {folder.name: len(list(folder.iterdir())) for folder in (data / "train").iterdir()} == {
        "ants": 320,
        "bees": 320,
    }
    assert len(list((data / "val").glob("*/*"))) == 153
    assert benchmark_data.photos_640(Path("unread"), tmp_path) == data
