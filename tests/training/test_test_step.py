"""Nothing about the test split costs a trained network: it is looked at before, and a failure is told behind it."""

from __future__ import annotations

import json
import logging
import random
import shutil

import numpy as np
import pytest
import torch
from support.runs import Unsized, assert_same_weights, bring, tensors
from torch.utils.data import DataLoader, Dataset, TensorDataset

from attention_transfer import DataError, load_model, prepare_dataloaders, train_at
from attention_transfer.data.loading.user_loaders import lacks_labels
from attention_transfer.training.setup.data.first_batches import fetch_first

pytestmark = pytest.mark.slow


def summary_of(tmp_path):
    return json.loads((tmp_path / "logs" / "run_summary.json").read_text())


@pytest.fixture
def digits_with_test(few_digits, tmp_path):
    """train/ and test/ of the few digits, as files that may be damaged."""
    root = tmp_path / "data"
    for folder in few_digits.iterdir():
        for split, chosen in (("train", slice(0, 9)), ("test", slice(9, None))):
            (root / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[chosen]:
                shutil.copy(file, root / split / folder.name / file.name)
    return root


def test_a_test_folder_without_labels_does_not_stop_training(settings, digits_with_test, tmp_path):
    for folder in sorted((digits_with_test / "test").iterdir()):
        for file in folder.iterdir():
            file.rename(digits_with_test / "test" / file.name)
        folder.rmdir()
    results = train_at({**settings, "data_dir": str(digits_with_test), "model": "CifarResNet-8"})
    assert (results["status"], results["test_results"], results["test_error"]) == ("finished", None, None)
    log = (tmp_path / "logs" / "run.log").read_text()
    assert log.count("no test results") == 1
    assert set(summary_of(tmp_path)["images_per_class"]["3"]) == {"train", "val"}


def test_classes_that_are_missing_in_test_are_measured_without(settings, digits_with_test):
    shutil.rmtree(digits_with_test / "test" / "3")
    results = train_at({**settings, "data_dir": str(digits_with_test), "model": "CifarResNet-8"})
    assert results["test_results"]["samples"] == 27
    assert results["test_results"]["per_class"]["3"]["support"] == 0


def test_a_damaged_image_in_test_costs_no_trained_network(settings, digits_with_test, tmp_path):
    damaged = sorted((digits_with_test / "test" / "7").iterdir())[-1]
    damaged.write_bytes(damaged.read_bytes()[:60])
    config = {**settings, "data_dir": str(digits_with_test), "model": "CifarResNet-8", "pixel_cache": "off"}
    results = train_at(config)
    assert (results["status"], results["test_results"], results["stopped_by"]) == ("finished", None, None)
    assert f"DataError: {damaged} cannot be read as an image" in results["test_error"]
    assert_same_weights(load_model(tmp_path / "checkpoints" / "run_final.pth", "cpu")["model"], results["model"])
    kept = summary_of(tmp_path)
    assert (kept["status"], kept["error"], kept["test_error"]) == ("finished", None, results["test_error"])
    log = (tmp_path / "logs" / "run.log").read_text()
    assert log.count("ERROR the network is trained, but there are no test results: DataError") == 1
    assert "finished after 1 of 1 epochs: best accuracy" in log


class FailsLater:
    """A loader whose second pass, which is the test, ends in an error of the user's."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        yield tensors(8)
        if self.passes == 2:
            raise KeyError("column 'label'")


def test_an_error_of_the_users_loader_in_the_test_is_told_with_its_lines(settings, tmp_path):
    results = train_at(bring(settings), [tensors()], test_loader=FailsLater())
    assert (results["status"], results["test_results"]) == ("finished", None)
    assert results["test_error"] == "KeyError: \"column 'label'\""
    assert "in __iter__" in (tmp_path / "logs" / "run.log").read_text()


def test_a_wrong_label_behind_the_first_batch_costs_no_trained_network(settings):
    x, y = tensors(8)
    results = train_at(bring(settings), [tensors()], test_loader=[(x, y), (x, y + 5)])
    assert results["status"] == "finished"
    assert "DataError: a label is 8" in results["test_error"]


def test_ctrl_c_in_the_test_stops_the_run_as_ever(settings):
    class Interrupted(FailsLater):
        def __iter__(self):
            self.passes += 1
            if self.passes == 2:
                raise KeyboardInterrupt
            yield tensors(8)

    results = train_at(bring(settings), [tensors()], test_loader=Interrupted())
    assert (results["status"], results["stopped_by"], results["test_error"]) == ("stopped", "SIGINT", None)


IMAGES = tensors(8)[0]


@pytest.mark.parametrize(
    "batch",
    [IMAGES, [IMAGES], (IMAGES,), {"image": IMAGES}, (IMAGES, None), (IMAGES, [f"{number}.png" for number in range(8)]),
     {"pixel_values": IMAGES, "path": ["a.png"] * 8}, (IMAGES, torch.full((8,), -1))],
)  # fmt: skip
def test_a_test_loader_without_labels_is_said_before_training_and_gives_no_results(settings, tmp_path, batch):
    results = train_at(bring(settings), [tensors()], test_loader=[batch])
    assert (results["status"], results["test_results"], results["test_error"]) == ("finished", None, None)
    log = (tmp_path / "logs" / "run.log").read_text()
    assert log.count("the batches of test_loader have no labels: there will be no test results") == 1
    assert log.index("no labels") < log.index("epoch 1/1")


@pytest.mark.parametrize(
    "batch",
    [tensors(), {"x": IMAGES, "y": [0] * 8}, (IMAGES, [0] * 8), (IMAGES, ["ant", "bee"] * 4), IMAGES[0], 7, None],
)
def test_labels_of_any_kind_are_no_want_of_labels(batch):
    assert not lacks_labels(batch, ("ant", "bee"))


BAD = {
    "bytes instead of floats": ((IMAGES * 255).byte(), tensors(8)[1]),
    "one-hot labels": (IMAGES, torch.eye(8)),
    "no pair": {"pictures": IMAGES},
    "an impossible label": (IMAGES, tensors(8)[1] + 1),
}


@pytest.mark.parametrize("role", ["train_loader", "val_loader", "test_loader"])
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_first_batch_of_any_loader_is_refused_before_training_by_the_loaders_name(settings, tmp_path, role, kind):
    loaders = {"train_loader": [tensors()], "val_loader": [tensors()], "test_loader": [tensors()], role: [BAD[kind]]}
    with pytest.raises(DataError, match=f"^{role}: .*(batch|label is 4)"):
        train_at({**bring(settings), "num_classes": 4}, **loaders)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("role", ["train_loader", "val_loader", "test_loader"])
def test_a_loader_that_gives_no_batch_is_refused_before_training(settings, role):
    loaders = {"train_loader": [tensors()], role: Unsized([])}
    with pytest.raises(DataError, match=f"{role} gives no batch"):
        train_at({**bring(settings), "num_classes": 4}, **loaders)


def test_an_error_of_a_loader_in_the_look_before_training_names_the_loader(settings):
    class Broken:
        def __iter__(self):
            raise KeyError("label")

    with pytest.raises(KeyError) as raised:
        train_at({**bring(settings), "num_classes": 4}, [tensors()], test_loader=Broken())
    assert any("test_loader" in note for note in raised.value.__notes__)


class Drawing(Dataset):
    """Its images are drawn from all three global generators."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.rand(3, 16, 16) + random.random() + np.random.rand(), index % 4


def states(generator):
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        generator.get_state().tolist(),
    )


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (1, False), (1, True)])
def test_the_look_leaves_every_random_state_and_no_worker(workers, persistent):
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(
        Drawing(), batch_size=2, shuffle=True, generator=generator, num_workers=workers, persistent_workers=persistent
    )
    before = states(generator)
    fetch_first(loader, "train_loader")
    assert states(generator) == before
    assert loader._iterator is None


class Recording(TensorDataset):
    """Keeps the order in which it is read."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def test_the_epochs_of_a_loader_with_its_own_generator_are_those_without_the_look(settings):
    loaders = [
        DataLoader(Recording(*tensors(12)), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
        for _ in range(2)
    ]
    for _ in range(2):
        list(loaders[0])
    train_at({**bring(settings), "num_classes": 4, "epochs": 2}, loaders[1])
    assert loaders[1].dataset.read[4:] == loaders[0].dataset.read


def test_a_loader_is_asked_for_one_batch_and_every_epoch_has_all(settings):
    data = Recording(*tensors(12))
    train_at({**bring(settings), "num_classes": 4, "epochs": 2}, DataLoader(data, batch_size=4))
    assert data.read == [*range(4), *range(12), *range(12)]


def test_loaders_of_ours_are_not_asked_for_they_count_epochs(few_digits, settings):
    train, val, test = prepare_dataloaders(few_digits, num_workers=0, image_size=32)
    results = train_at(bring(settings), train, val, test)
    assert train.batch_sampler.next_epoch == 1
    assert test.batch_sampler.next_epoch == 1
    assert results["test_results"]["samples"] == 20


def test_the_command_line_says_why_there_are_no_test_results(settings, digits_with_test, capsys):
    from attention_transfer.cli.commands.train import summarise

    damaged = next((digits_with_test / "test" / "7").iterdir())
    damaged.write_bytes(b"")
    config = {**settings, "data_dir": str(digits_with_test), "model": "CifarResNet-8", "pixel_cache": "off"}
    result = train_at(config)
    capsys.readouterr()
    summarise(result, 1.0)
    assert "not measured: DataError" in capsys.readouterr().out


def test_the_summary_is_written_where_there_is_no_test_split(settings, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        results = train_at(bring(settings), [tensors()])
    assert (results["test_results"], results["test_error"]) == (None, None)
    assert summary_of(tmp_path)["test_error"] is None
