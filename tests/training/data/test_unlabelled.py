"""Images without labels beside the labelled ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from attention_transfer import ConfigError, DataError, create_model, evaluate_model, prepare_dataloaders, train_at
from attention_transfer.data.batches import Batch
from attention_transfer.data.loading.relabelled import Relabelled
from attention_transfer.data.loading.unlabelled import UnlabelledOrder
from attention_transfer.data.views import Augmentation
from attention_transfer.logs import log_once
from attention_transfer.losses.classification import CrossEntropy
from attention_transfer.training.own_loop import compute_at_loss, train_epoch, validate


@pytest.fixture(scope="module")
def strays(digits_folder, tmp_path_factory):
    """37 digits in a tree whose folders mean nothing, beside a file that is no image."""
    root = tmp_path_factory.mktemp("strays")
    files = sorted(digits_folder.rglob("*.png"))[20::48][:37]
    for number, file in enumerate(files):
        folder = root / ("a" if number % 3 else "b/c")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file.name)
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def settings(settings, eighty_digits, strays, tmp_path):
    return {
        **settings, "data_dir": str(eighty_digits), "unlabelled_dir": str(strays), "model": "CifarResNet-8",
        "image_size": 16, "batch_size": 16, "epochs": 2, "lr": 1e-6, "alpha": 1.0, "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip


def loader_of(folder, strays, batch_size=16, **settings):
    train, *_ = prepare_dataloaders(folder, batch_size, num_workers=0, image_size=32, unlabelled_dir=strays, **settings)
    return train


@pytest.mark.parametrize(("ratio", "beside"), [(1.0, 16), (0.5, 8), (2.5, 40)])
def test_each_labelled_batch_has_so_many_unlabelled_images_more_and_labelled_ones_make_the_epoch(
    eighty_digits, strays, ratio, beside
):
    train = loader_of(eighty_digits, strays, unlabelled_ratio=ratio)
    batches = list(train)
    labelled = torch.cat([batch.indices[batch.labels >= 0] for batch in batches])
    assert sorted(labelled.tolist()) == list(range(train.dataset.num_labelled))
    for batch in batches[:-1]:
        assert (batch.labels >= 0).sum() == 16
        assert batch.labels[16:].tolist() == [-100] * beside
        assert batch.indices[16:].min() >= train.dataset.num_labelled


def test_every_unlabelled_image_comes_up_once_before_any_comes_up_again(eighty_digits, strays):
    train = loader_of(eighty_digits, strays)
    seen = [index for _ in range(3) for batch in train for index in batch.indices[batch.labels < 0].tolist()]
    first = train.dataset.num_labelled
    for begin in range(0, len(seen) - 37, 37):
        assert sorted(seen[begin : begin + 37]) == list(range(first, first + 37))
    assert seen[:37] != seen[37:74]


def test_the_endless_order_is_a_function_of_its_seed():
    whole = UnlabelledOrder(10, 1.0, 3).taken(0, 100)
    assert UnlabelledOrder(10, 1.0, 3).taken(40, 25) == whole[40:65]
    assert UnlabelledOrder(10, 1.0, 4).taken(0, 100) != whole


def test_neither_start_nor_ranks_change_what_comes(eighty_digits, strays):
    whole = [batch.indices.tolist() for batch in loader_of(eighty_digits, strays)]
    resumed = loader_of(eighty_digits, strays)
    resumed.batch_sampler.set_epoch(0, 2)
    assert [batch.indices.tolist() for batch in resumed] == whole[2:]
    ranks = [loader_of(eighty_digits, strays, rank=rank, world_size=2) for rank in (0, 1)]
    sizes = zip(ranks[0].batch_sampler.global_sizes(), ranks[0].batch_sampler.labelled_sizes(), strict=True)
    for one, other, expected, (size, labelled) in zip(*ranks, whole, sizes, strict=True):
        assert sorted(one.indices.tolist() + other.indices.tolist()) == sorted(expected)
        assert (size, labelled) == (len(expected), sum(int((batch.labels >= 0).sum()) for batch in (one, other)))


def test_images_are_mixed_with_those_that_have_a_label_as_they_do(eighty_digits, strays):
    train = loader_of(eighty_digits, strays, augment=True, augmentation=Augmentation(mixup=1.0))
    for batch in train:
        assert torch.equal(batch.labels < 0, batch.partner_labels < 0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_cross_entropy_is_the_mean_over_labelled_images_and_so_is_its_gradient(smoothing, weights):
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3, requires_grad=True), torch.tensor([0, -100, 2, 1, -100, 0])
    cross_entropy, kept = CrossEntropy(smoothing, weights), labels >= 0
    ours = cross_entropy(logits, labels, are_all_labelled=False)
    theirs = cross_entropy(logits[kept], labels[kept])
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))


def test_a_batch_without_any_label_has_no_cross_entropy_and_says_so_once(caplog, teacher):
    torch.manual_seed(0)
    student = create_model("CifarResNet-8", 10)
    images, none = torch.rand(4, 3, 32, 32), torch.full((4,), -100)
    losses = compute_at_loss(student, teacher, images, none, {"alpha": 1.0})
    assert float(losses.classification) == 0
    assert float(losses.kd) > 0
    losses.total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    log_once.cache_clear()
    with caplog.at_level("INFO"):
        train_epoch(student, teacher, [(images, none), (images, none)], optimizer, "cpu", {"alpha": 1.0})
    assert caplog.text.count("no labelled image: its cross-entropy is 0") == 1


@pytest.mark.parametrize("logit_loss", ["dkd", "kd"])
def test_terms_that_need_labels_pass_unlabelled_images_over_and_others_do_not(teacher, logit_loss):
    torch.manual_seed(0)
    student = create_model("CifarResNet-8", 10).eval()
    images, labels = torch.rand(6, 3, 32, 32), torch.tensor([3, -100, 1, -100, -100, 9])
    settings = {"alpha": 1.0, "logit_loss": logit_loss, "dkd_warmup": 0}
    whole = compute_at_loss(student, teacher, images, labels, settings)
    kept = labels >= 0
    alone = compute_at_loss(student, teacher, images[kept], labels[kept], settings)
    torch.testing.assert_close(whole.classification, alone.classification)
    assert torch.allclose(whole.kd, alone.kd, rtol=1e-4) == (logit_loss == "dkd")


def test_gradient_attention_passes_unlabelled_images_over(teacher):
    torch.manual_seed(0)
    student = create_model("CifarResNet-8", 10).eval()
    images, labels = torch.rand(6, 3, 32, 32), torch.tensor([3, -100, 1, -100, -100, 9])
    kept, settings = labels >= 0, {"attention": "gradient"}
    whole = compute_at_loss(student, teacher, images, labels, settings)
    alone = compute_at_loss(student, teacher, images[kept], labels[kept], settings)
    torch.testing.assert_close(whole.attention, alone.attention, rtol=1e-3, atol=1e-7)
    nothing = compute_at_loss(student, teacher, images, torch.full((6,), -100), settings)
    assert float(nothing.attention) == 0


class Knows(torch.nn.Module):
    """Says the class that is written in the first pixel of an image."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(5.0))

    def forward(self, x):
        return self.scale * F.one_hot(x[:, 0, 0, 0].round().long(), 10).float()


def written(classes):
    images = torch.zeros(len(classes), 3, 8, 8)
    images[:, 0, 0, 0] = torch.tensor(classes, dtype=torch.float32)
    return images


def test_accuracy_and_cross_entropy_of_an_epoch_count_labelled_images_alone():
    batches = [
        (written([1, 2, 3, 4]), torch.tensor([1, -100, 5, -100])),
        (written([6, 7]), torch.tensor([-100, -100])),
        (written([8, 9]), torch.tensor([8, 9])),
    ]
    student, everything = Knows(), torch.tensor([1, 5, 8, 9])
    expected = float(F.cross_entropy(student(written([1, 3, 8, 9])), everything))
    for figures in (
        train_epoch(student, None, batches, torch.optim.SGD(student.parameters(), lr=0.0), "cpu"),
        validate(student, None, batches, "cpu"),
    ):
        assert figures["accuracy"] == 0.75
        assert figures["classification"] == pytest.approx(expected, rel=1e-6)
    assert figures["balanced_accuracy"] == 0.75
    report = evaluate_model(student, batches)
    assert (report["samples"], report["accuracy"]) == (4, 0.75)
    assert report["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("views", "attention"), [(None, "sum"), ("warp", "sum"), (1, "gradient")])
def test_what_is_remembered_of_unlabelled_images_is_what_the_live_teacher_says(settings, teacher, views, attention):
    settings |= {"augment": views is not None, "augment_views": views, "attention": attention}
    remembered = train_at({**settings, "experiment_name": "remembered"}, teacher=teacher)
    log = Path(settings["log_dir"], "remembered.log").read_text()
    answered = int(re.search(r"epoch 2: (\d+) images answered from memory", log)[1])
    # 60 labelled images and as many others, of the 37 that there are; warped, the same way round as in the first epoch
    assert answered > 40 if views == "warp" else answered == 120
    live = train_at({**settings, "experiment_name": "live", "teacher_cache": "off"}, teacher=teacher)
    for ours, theirs in zip(*(run["training_history"] for run in (remembered, live)), strict=True):
        assert ours["train_attention"] == pytest.approx(theirs["train_attention"], rel=3e-3)
        assert ours["train_kd"] == pytest.approx(theirs["train_kd"], rel=2e-3)


@pytest.mark.slow
def test_unlabelled_images_are_distilled_from(settings, teacher):
    settings |= {"epochs": 1, "teacher_cache": "off"}
    beside = train_at({**settings, "experiment_name": "beside"}, teacher=teacher)["training_history"][0]
    without = train_at({**settings, "unlabelled_dir": None}, teacher=teacher)["training_history"][0]
    for figure in ("train_kd", "train_attention"):
        assert beside[figure] != pytest.approx(without[figure], rel=1e-3)


@pytest.mark.slow
def test_unlabelled_images_are_part_of_the_memory_and_of_the_run(settings, teacher, strays, tmp_path):
    train_at({**settings, "experiment_name": "first"}, teacher=teacher)
    log = (tmp_path / "logs" / "first.log").read_text()
    assert "37 images without labels in" in log
    others = tmp_path / "others"
    shutil.copytree(strays, others)
    for file in sorted(others.rglob("*.png"))[:5]:
        file.unlink()
    train_at({**settings, "experiment_name": "second", "unlabelled_dir": str(others)}, teacher=teacher)
    second = (tmp_path / "logs" / "second.log").read_text()
    assert "92 by the teacher's network" in second  # 60 and 32: none is taken for one of the first run
    last = str(tmp_path / "checkpoints" / "first_last.pth")
    again = {**settings, "experiment_name": "first", "resume": last, "epochs": 3}
    with pytest.raises(ConfigError, match="unlabelled images"):
        train_at({**again, "unlabelled_dir": str(others)}, teacher=teacher)
    with pytest.raises(ConfigError, match="unlabelled images"):
        train_at({**again, "unlabelled_dir": None}, teacher=teacher)
    moved = shutil.copytree(strays, tmp_path / "moved")
    assert train_at({**again, "unlabelled_dir": str(moved)}, teacher=teacher)["status"] == "finished"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabelled_dir": "/nowhere"}, "which is no folder"),
        ({"unlabelled_ratio": 0.01}, "less than one unlabelled image"),
    ],
)
def test_what_cannot_be_is_refused(eighty_digits, strays, changes, message):
    with pytest.raises(DataError, match=message):
        prepare_dataloaders(eighty_digits, 16, num_workers=0, **{"unlabelled_dir": strays, **changes})


def test_a_folder_without_images_is_named(eighty_digits, tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        prepare_dataloaders(eighty_digits, 16, num_workers=0, unlabelled_dir=tmp_path)


def test_an_image_without_a_label_stays_so_where_classes_are_numbered_otherwise():
    """-100 is also a position from the end of a table of more than a hundred classes."""
    classes = 120
    batch = Batch(torch.zeros(3, 3, 8, 8), torch.tensor([0, -100, 5]))
    [renumbered] = Relabelled([batch], list(reversed(range(classes))), [str(i) for i in range(classes)], "train_loader")
    assert renumbered.labels.tolist() == [119, -100, 114]


@pytest.mark.slow
def test_classes_in_an_order_of_ones_own_change_nothing_but_their_numbers(settings):
    torch.manual_seed(5)
    student, turned = create_model("CifarResNet-8", 10), create_model("CifarResNet-8", 10)
    turned.load_state_dict(student.state_dict())
    with torch.no_grad():
        for own, other in zip(student.linear.parameters(), turned.linear.parameters(), strict=True):
            other.copy_(own.flip(0))
    settings = {**settings, "epochs": 1, "alpha": 0.0, "overwrite": True}
    one = train_at(settings, student=student)["training_history"][0]
    other = train_at({**settings, "class_names": tuple("9876543210")}, student=turned)["training_history"][0]
    for name in ("train_classification", "train_accuracy", "val_classification", "val_accuracy"):
        assert one[name] == pytest.approx(other[name], rel=1e-4)
