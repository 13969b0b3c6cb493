"""Balanced accuracy stands beside accuracy, and tells what that hides where classes are of very different sizes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import balanced_accuracy_score
from support.runs import bring, scalars, without_clock
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from attention_transfer import evaluate_model, load_model, train_at, validate
from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.data.balance import class_counts, imbalance_warning
from attention_transfer.distributed import Runtime
from attention_transfer.losses.total import Losses
from attention_transfer.training.metrics import MeanMeter
from attention_transfer.training.own_loop import train_epoch

SOUND, CRACKED = 180, 6


class AlwaysTheFirst(nn.Module):
    """A network that has learnt nothing but which class is the largest."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([5.0, 0.0, 0.0]))

    def forward(self, x):
        return self.bias + 0 * x.mean(dim=(1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def imbalanced():
    """180 zeros and 6 ones of scikit-learn's digits, as two classes of three; the third has no image."""
    digits = load_digits()
    chosen = np.flatnonzero(digits.target == 0).tolist()
    chosen = (chosen * 2)[:SOUND] + np.flatnonzero(digits.target == 1)[:CRACKED].tolist()
    images = torch.tensor(digits.images[chosen] / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    return TensorDataset(images, torch.tensor(digits.target[chosen]))


def test_whoever_always_says_the_largest_class_has_half_the_balanced_accuracy_of_two_classes(imbalanced):
    loader = DataLoader(imbalanced, batch_size=50)
    report = evaluate_model(AlwaysTheFirst(), loader)
    figures = validate(AlwaysTheFirst(), None, loader, "cpu")
    for each in (report, figures):
        assert each["accuracy"] == pytest.approx(SOUND / (SOUND + CRACKED), abs=1e-7)
        assert each["balanced_accuracy"] == 0.5  # the class without images is no class with a recall of 0


def test_evaluation_and_validation_agree_with_scikit_learn(digits_folder):
    from attention_transfer import create_model, prepare_dataloaders

    torch.manual_seed(0)
    network = create_model("CifarResNet-8", 10).eval()
    *_, test = prepare_dataloaders(digits_folder, 100, num_workers=0, image_size=32)
    few = DataLoader(Subset(test.dataset, [*range(40), *range(100, 130), *range(200, 203)]), batch_size=16)
    with torch.no_grad():
        answers = [(network(images).argmax(dim=1), labels) for images, labels in few]
    said, true = (torch.cat(part).numpy() for part in zip(*answers, strict=True))
    expected = balanced_accuracy_score(true, said)
    assert expected != pytest.approx((said == true).mean(), abs=1e-3)
    assert evaluate_model(network, few)["balanced_accuracy"] == pytest.approx(expected)
    assert validate(network, None, few, "cpu")["balanced_accuracy"] == pytest.approx(expected)


def losses_of(logits):
    zero = torch.zeros((), device=logits.device)
    return Losses.of(zero, {"classification": zero}, logits)


def test_sums_of_several_processes_are_those_of_one():
    """The counts of every process are added before they are divided: a mean of their recalls would be another one."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(60, 4, generator=generator), torch.randint(4, (60,), generator=generator)
    local_batches = [MeanMeter(torch.device("cpu"), by_class=True) for _ in range(3)]
    for rank, share in enumerate(local_batches):
        mine = slice(rank, None, 3) if rank else slice(0, 0)  # the first has an empty share
        share.add(losses_of(logits[mine]), labels[mine])
    whole = MeanMeter(torch.device("cpu"), by_class=True)
    rest = [index for index in range(60) if index % 3]
    whole.add(losses_of(logits[rest]), labels[rest])

    class Three(Runtime):
        def sum_over_processes(self, values):
            return sum(share._all(share._sums) for share in local_batches)

    alone, all_or_raise = whole.means(Runtime(torch.device("cpu"))), local_batches[0].means(Three(torch.device("cpu")))
    assert all_or_raise == alone
    expected = balanced_accuracy_score(labels[rest].numpy(), logits[rest].argmax(dim=1).numpy())
    assert all_or_raise.figures["balanced_accuracy"] == pytest.approx(expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
def test_counting_classes_does_not_wait_for_the_device():
    sums = MeanMeter(torch.device("cuda"), by_class=True)
    logits, labels = torch.randn(32, 10, device="cuda"), torch.arange(32, device="cuda") % 10
    losses = losses_of(logits)
    sums.add(losses, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums.add(losses, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = balanced_accuracy_score(labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy())
    assert sums.means(Runtime(torch.device("cuda"))).figures["balanced_accuracy"] == pytest.approx(expected)


def test_training_counts_no_classes_so_that_checkpoints_inside_an_epoch_stay_as_they_are():
    sums = MeanMeter(torch.device("cpu"))
    sums.add(losses_of(torch.randn(8, 1000)), torch.arange(8))
    # count, correct, loss, classification and the number of labelled images
    assert len(sums.over_processes(Runtime(torch.device("cpu")))) == 5
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8) % 3
    from attention_transfer import create_model

    network = create_model("CifarResNet-8", 3)
    figures = train_epoch(network, None, [(images, labels)], torch.optim.SGD(network.parameters(), lr=0.1), "cpu")
    assert "balanced_accuracy" not in figures


@pytest.fixture(scope="module")
def imbalanced_run(tmp_path_factory, digits_folder):
    """A run on 60 zeros and 6 ones that has learnt to say zero, and its folder."""
    folder = tmp_path_factory.mktemp("sixty-and-six")
    for label, count in ((0, 60), (1, 6)):
        (folder / "data" / str(label)).mkdir(parents=True)
        for file in sorted((digits_folder / str(label)).iterdir())[:count]:
            (folder / "data" / str(label) / file.name).symlink_to(file)
    settings = {
        "model": "CifarResNet-8", "data_dir": str(folder / "data"), "image_size": 32, "num_workers": 0, "epochs": 2,
        "device": "cpu", "precision": "fp32", "save_dir": str(folder / "checkpoints"), "log_dir": str(folder / "logs"),
        "experiment_name": "run",
    }  # fmt: skip
    return train_at(settings), folder


def test_a_run_tells_it_in_results_history_log_summary_and_tensorboard(imbalanced_run):
    results, folder = imbalanced_run
    summary = json.loads((folder / "logs" / "run_summary.json").read_text())
    points = scalars(folder / "logs" / "run")
    log = (folder / "logs" / "run.log").read_text()
    best = next(each for each in results["training_history"] if each["val_accuracy"] == results["best_accuracy"])
    balanced = [record["val_balanced_accuracy"] for record in results["training_history"]]
    assert results["best_balanced_accuracy"] == summary["best_balanced_accuracy"] == best["val_balanced_accuracy"]
    assert [value for _, value in points["balanced_accuracy/val"]] == pytest.approx(balanced)
    assert points["hparam/best_balanced_accuracy"][0][1] == pytest.approx(results["best_balanced_accuracy"])
    tested = results["test_results"]["balanced_accuracy"]
    assert points["hparam/test_balanced_accuracy"][0][1] == pytest.approx(tested)
    for record in results["training_history"]:
        expected = f"accuracy {record['val_accuracy']:.2%}, balanced {record['val_balanced_accuracy']:.2%}"
        assert re.search(rf"epoch {record['epoch']}/2: .*; val .*{re.escape(expected)}", log)
    assert f"balanced {results['best_balanced_accuracy']:.2%} in that epoch" in log
    assert f"balanced {100 * tested:.2f}% on" in log


def test_classes_of_very_different_sizes_are_told_of_once_before_the_first_epoch(imbalanced_run):
    lines = (imbalanced_run[1] / "logs" / "run.log").read_text().splitlines()
    (where,) = [number for number, line in enumerate(lines) if "classes are imbalanced" in line]
    assert " WARNING " in lines[where]
    counts = class_counts(DataLoader(folder_dataset(imbalanced_run[1] / "data")))
    assert f"{counts[0]} are '0' and {counts[1]} are '1'" in lines[where]
    assert "balanced accuracy" in lines[where]
    assert where < next(number for number, line in enumerate(lines) if "epoch 1/2" in line)


def folder_dataset(data):
    from attention_transfer import prepare_dataloaders

    return prepare_dataloaders(data, num_workers=0, image_size=32)[0].dataset


def test_the_command_line_prints_both_figures_of_a_run_a_checkpoint_and_a_split(imbalanced_run, capsys):
    from attention_transfer.cli.commands.evaluate import show
    from attention_transfer.cli.commands.info import show_file
    from attention_transfer.cli.commands.train import summarise

    results, folder = imbalanced_run
    summarise(results, 1.0)
    printed = capsys.readouterr().out
    percent = f"{100 * results['best_balanced_accuracy']:.2f} %"
    assert re.search(rf"its balanced accuracy +{percent}", printed)
    assert re.search(rf"balanced test accuracy +{100 * results['test_results']['balanced_accuracy']:.2f} %", printed)
    show_file(str(folder / "checkpoints" / "run_best.pth"))
    assert re.search(rf"its balanced accuracy +{percent}", capsys.readouterr().out)
    show("test", results["test_results"])
    assert re.search(rf"balanced accuracy +{100 * results['test_results']['balanced_accuracy']:.2f} %",
                     capsys.readouterr().out)  # fmt: skip


def test_a_checkpoint_from_before_goes_on_is_loaded_and_is_told_without_the_figure(imbalanced_run, tmp_path, capsys):
    from attention_transfer.cli.commands.info import show_file

    results, folder = imbalanced_run
    old = tmp_path / "old.pth"
    content = read_checkpoint(folder / "checkpoints" / "run_last.pth")
    for record in content["training"]["history"]:
        del record["val_balanced_accuracy"]
    write_checkpoint(old, content)
    assert load_model(old, "cpu")["best_balanced_accuracy"] is None
    assert load_model(folder / "checkpoints" / "run_last.pth", "cpu")["best_balanced_accuracy"] is not None
    show_file(str(old))
    assert "balanced accuracy" not in capsys.readouterr().out

    again = train_at({
        "resume": str(old), "epochs": 3, "experiment_name": "again", "save_dir": str(tmp_path / "c"),
        "log_dir": str(tmp_path / "l"), "device": "cpu",
    })  # fmt: skip
    assert ["val_balanced_accuracy" in record for record in again["training_history"]] == [False, False, True]
    before = [{k: v for k, v in record.items() if k != "val_balanced_accuracy"} for record in
              without_clock(results["training_history"])]  # fmt: skip
    assert without_clock(again["training_history"])[:2] == before
    summary = json.loads((tmp_path / "l" / "again_summary.json").read_text())
    assert summary["best_balanced_accuracy"] == again["best_balanced_accuracy"]


def test_a_run_that_does_not_validate_has_none(settings, tmp_path, capsys):
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    results = train_at(bring(settings), [(images, labels)])
    assert results["best_balanced_accuracy"] is None
    assert "val_balanced_accuracy" not in results["training_history"][0]
    assert ", balanced" not in (tmp_path / "logs" / "run.log").read_text()


class Labelled(Dataset):
    """A data set of a user's, with torchvision's attribute."""

    def __init__(self, targets, **more):
        self.targets = targets
        self.__dict__.update(more)

    def __len__(self):
        return 12

    def __getitem__(self, index):
        raise AssertionError("an image was read")


TWELVE = [0] * 10 + [1, 2]


@pytest.mark.parametrize("targets", [TWELVE, tuple(TWELVE), np.array(TWELVE), torch.tensor(TWELVE)])
def test_labels_of_a_users_data_set_are_counted_without_reading_an_image(targets):
    assert class_counts(DataLoader(Labelled(targets))) == {0: 10, 1: 1, 2: 1}
    part = Subset(Subset(Labelled(targets), [0, 1, 2, 10, 11]), [1, 3])
    assert class_counts(DataLoader(part)) == {0: 1, 1: 1}


@pytest.mark.parametrize(
    "dataset",
    [
        Labelled([{"boxes": 1}] * 12),  # of detection
        Labelled(torch.eye(12)),  # one-hot
        Labelled([0.5] * 12),
        Labelled([0, 1]),  # not one an image
        Labelled([[0], [1, 2]] * 6),
        Labelled(TWELVE, target_transform=lambda label: 0),
        TensorDataset(torch.zeros(12)),
    ],
)
def test_labels_that_are_not_plainly_known_are_left_alone(dataset):
    assert class_counts(DataLoader(dataset)) is None
    assert class_counts([1, 2]) is None


def test_the_warning_begins_at_five_to_one_and_names_both_ends():
    assert imbalance_warning({0: 49, 1: 10}, ["a", "b"]) is None
    assert imbalance_warning({}, ["a", "b"]) is None
    assert "50 are 'b' and 10 are 'a', 5 to 1" in imbalance_warning({0: 10, 1: 50, 2: 30}, ["a", "b", "c"])
    assert "90 are 7 and 1 are 'a', 90 to 1" in imbalance_warning({0: 1, 7: 90}, ["a", "b"])
