"""Classes are matched by name wherever two lists of them meet: teacher, loaders, evaluate, resume."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from support.runs import bring, tensors, without_clock
from torch.utils.data import DataLoader, Dataset

from attention_transfer import (
    ConfigError,
    DataError,
    TeacherError,
    compute_at_loss,
    create_model,
    evaluate_model,
    load_model,
    train_at,
    validate,
)
from attention_transfer.checkpoint import read_checkpoint, write_checkpoint
from attention_transfer.config import Config
from attention_transfer.data import prepare_dataloaders
from attention_transfer.distributed import Runtime
from attention_transfer.networks.class_lists import imagenet_categories, imagenet_synsets, network_classes
from attention_transfer.networks.registry import ModelCard
from attention_transfer.teacher.loading import load_teacher_model
from attention_transfer.training.precision.trial import training_step
from attention_transfer.training.setup.loaders import Loaders
from attention_transfer.training.setup.numbering import number_alike

DIGITS = tuple("0123456789")
ORDER = (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)
ANIMALS = ("ant", "bee", "cat", "dog")


def named(network, names):
    network.card = ModelCard(network.card.name, network.card.num_classes, tuple(names))
    return network


def turned(network, order, names):
    """The same network, which puts out its logits in another order, bit for bit, and names them so."""
    other = copy.deepcopy(network)
    other.register_forward_hook(lambda module, arguments, logits: logits[:, list(order)])
    return named(other, [names[position] for position in order])


@pytest.fixture
def settings(settings, tmp_path):
    """Of a run that distils."""
    return {
        **settings,
        "model": "CifarResNet-8",
        "alpha": 0.7,
        "lr": 0.05,
        "precision": "fp32",
        "teacher_precision": "fp32",
        "cache_dir": str(tmp_path / "cache"),
        "overwrite": True,
    }


@pytest.fixture
def digits_teacher(teacher):
    return named(copy.deepcopy(teacher), DIGITS)


LIVE = {"augment": True, "augment_views": None}
REMEMBERED = {"teacher_cache": "on", "epochs": 2}


@pytest.mark.parametrize("way", [LIVE, REMEMBERED], ids=["live", "remembered"])
def test_a_teacher_with_its_classes_in_another_order_distils_bit_for_bit_as_the_right_one(
    settings, digits_teacher, way
):
    right = train_at({**settings, **way}, teacher=digits_teacher)
    other = train_at({**settings, **way}, teacher=turned(digits_teacher, ORDER, DIGITS))
    assert right["training_history"][0]["train_kd"] > 0
    assert without_clock(other["training_history"]) == without_clock(right["training_history"])
    # a student that heard the classes in the teacher's order would learn something else
    wrong = named(turned(digits_teacher, ORDER, DIGITS), DIGITS)
    mistaught = train_at({**settings, **way}, teacher=wrong)["training_history"]
    assert mistaught[0]["train_kd"] != right["training_history"][0]["train_kd"]


@pytest.mark.parametrize("way", [LIVE, REMEMBERED], ids=["live", "remembered"])
def test_a_head_whose_rows_are_in_another_order_distils_as_the_right_one(settings, digits_teacher, way):
    rows = copy.deepcopy(digits_teacher)
    with torch.no_grad():
        rows.linear.weight.copy_(digits_teacher.linear.weight[list(ORDER)])
        rows.linear.bias.copy_(digits_teacher.linear.bias[list(ORDER)])
    named(rows, [DIGITS[position] for position in ORDER])
    right = train_at({**settings, **way}, teacher=digits_teacher)["training_history"]
    other = train_at({**settings, **way}, teacher=rows)["training_history"]
    assert other[0]["train_kd"] == pytest.approx(right[0]["train_kd"], rel=1e-3)


@pytest.fixture
def odd_digits(few_digits, tmp_path):
    root = tmp_path / "odd"
    root.mkdir()
    for name in "13579":
        (root / name).symlink_to(few_digits / name)
    return root


def test_one_cache_of_whole_logits_serves_students_of_other_classes(settings, digits_teacher, odd_digits, tmp_path):
    config = {**settings, **REMEMBERED, "data_dir": str(odd_digits)}
    train_at(config, teacher=digits_teacher)
    cache = tmp_path / "cache"
    before = {path.name for path in cache.rglob("*") if path.is_file()}
    # the very network, of which it turns out that its classes were called otherwise
    corrected = named(copy.deepcopy(digits_teacher), "1x3y5z7w9v")
    said = tmp_path / "logs" / "run.log"
    second = train_at(config, teacher=corrected)
    assert {path.name for path in cache.rglob("*") if path.is_file()} == before
    assert "epoch 1: 40 images answered from memory, 0 by the teacher's network" in said.read_text()
    alone = train_at({**config, "cache_dir": str(tmp_path / "another")}, teacher=corrected)
    assert without_clock(second["training_history"]) == without_clock(alone["training_history"])


def test_the_classes_of_the_student_are_a_softmax_of_their_own(digits_teacher):
    x, y = tensors(8, classes=3, size=32)
    student = named(create_model("CifarResNet-8", 3), "720")
    losses = compute_at_loss(student.eval(), digits_teacher, x, y, {"alpha": 1.0, "temperature": 2.0})
    with torch.no_grad():
        heard = digits_teacher.eval()(x)[:, [7, 2, 0]] / 2
        log_student = (losses.logits / 2).log_softmax(dim=1)
        divergence = (heard.softmax(dim=1) * (heard.log_softmax(dim=1) - log_student)).sum(dim=1).mean()
    torch.testing.assert_close(losses.kd.detach(), 4 * divergence)
    measured = validate(student, digits_teacher, [(x, y)], "cpu", {"alpha": 1.0, "temperature": 2.0})
    assert measured["kd"] == pytest.approx(losses.kd.item(), rel=1e-5)


def test_a_teacher_that_lacks_a_class_can_be_looked_at_but_not_distilled_from(settings, digits_teacher):
    lacking = named(create_model("CifarResNet-8", 9), "012345678")
    with pytest.raises(TeacherError, match=r"student has the classes 0, .*, 9, and the teacher 0, .*, 8, .* no '9'"):
        train_at(settings, teacher=lacking)
    history = train_at({**settings, "alpha": 0.0}, teacher=lacking)["training_history"]
    assert history[0]["train_attention"] > 0
    assert history[0]["train_kd"] == 0


def test_what_is_taken_in_the_order_in_which_it_comes_is_said_once(settings, teacher, tmp_path):
    log = tmp_path / "logs" / "run.log"
    train_at({**settings, "epochs": 2}, teacher=teacher)
    assert log.read_text().count("the teacher does not name its classes: class i of the teacher is taken for") == 1
    log.unlink()
    train_at({**settings, "alpha": 0.0}, teacher=teacher)
    assert "does not name its classes" not in log.read_text()


def test_a_module_of_the_users_tells_its_classes_by_an_attribute(digits_teacher):
    x, y = tensors(8, classes=10, size=32)
    student = named(create_model("CifarResNet-8", 10), DIGITS).eval()
    right = compute_at_loss(student, digits_teacher, x, y, {"alpha": 1.0})
    own = turned(digits_teacher, ORDER, DIGITS)
    own.class_names = list(own.card.class_names)
    del own.card
    assert torch.equal(compute_at_loss(student, own, x, y, {"alpha": 1.0}).kd, right.kd)
    own.class_names = own.class_names[::-1]
    assert not torch.equal(compute_at_loss(student, own, x, y, {"alpha": 1.0}).kd, right.kd)


def test_pretrained_teachers_know_the_classes_of_imagenet_by_both_of_their_names():
    pairs = dict(zip(imagenet_synsets(), imagenet_categories(), strict=True))
    assert len(pairs) == 1000
    assert (pairs["n01440764"], pairs["n03028079"], pairs["n03888257"]) == ("tench", "church", "parachute")
    expert = named(create_model("CifarResNet-8", 1000), imagenet_categories())
    x, y = tensors(6, classes=3, size=32)
    kds = []
    for names in (("n03888257", "n01440764", "n03028079"), ("parachute", "tench", "church")):
        torch.manual_seed(0)
        student = named(create_model("CifarResNet-8", 3), names).eval()
        kds.append(compute_at_loss(student, expert, x, y, {"alpha": 1.0}).kd)
    assert torch.equal(*kds)
    assert kds[0] > 0


class Pictures(Dataset):
    """Random images of four animals, numbered in the order of `classes`."""

    def __init__(self, classes=ANIMALS):
        self.classes = classes
        self.x, truth = tensors()
        self.names = [ANIMALS[label] for label in truth]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.classes.index(self.names[index])


def pictures(classes=ANIMALS):
    return DataLoader(Pictures(classes), batch_size=8)


@pytest.fixture
def alone(settings):
    """Settings of a run without a teacher on loaders of the user's."""
    return {**bring(settings), "alpha": 0.0, "epochs": 2}


def test_loaders_that_number_the_classes_otherwise_are_heard_by_name(alone, tmp_path):
    right = train_at(alone, pictures(), pictures(), pictures())
    other = ("dog", "cat", "ant", "bee")
    result = train_at(alone, pictures(), pictures(other), pictures(other))
    assert without_clock(result["training_history"]) == without_clock(right["training_history"])
    for key in ("accuracy", "per_class", "confusion_matrix", "loss"):
        assert result["test_results"][key] == right["test_results"][key]
    assert list(result["test_results"]["per_class"]) == list(ANIMALS)
    said = (tmp_path / "logs" / "run.log").read_text()
    assert "val_loader and the training set number the same classes differently: they are matched by name" in said


def test_a_test_loader_of_few_classes_measures_these(alone):
    few = Pictures(("dog", "bee"))
    keep = [index for index, name in enumerate(few.names) if name in few.classes]
    few.x, few.names = few.x[keep], [few.names[index] for index in keep]
    result = train_at(alone, pictures(), pictures(), DataLoader(few, batch_size=4))["test_results"]
    support = {name: row["support"] for name, row in result["per_class"].items()}
    assert support == {"ant": 0, "bee": 5, "cat": 0, "dog": 5}


def test_a_loader_with_a_class_of_its_own_is_refused_before_training(alone, tmp_path):
    with pytest.raises(DataError, match=r"test_loader has the classes ant, bee, cat, dogs, .* no 'dogs' \(but 'dog'\)"):
        train_at(alone, pictures(), pictures(), DataLoader(Renamed("dogs")))
    assert not (tmp_path / "checkpoints").exists()


class Renamed(Pictures):
    """The same, with another name for the dogs."""

    def __init__(self, name):
        super().__init__()
        self.classes = (*ANIMALS[:3], name)
        self.names = [name if each == "dog" else each for each in self.names]


def test_a_label_that_a_loader_has_no_name_for_is_told(alone):
    wrong = Beyond(("dog", "cat", "ant", "bee"))
    with pytest.raises(DataError, match="val_loader has a label 4, but names 4 classes"):
        train_at(alone, pictures(), DataLoader(wrong))


class Beyond(Pictures):
    """The same, with a label that is none of its classes."""

    def __getitem__(self, index):
        return self.x[index], 4


def test_a_loader_without_names_is_taken_by_its_numbers_which_is_said(alone, tmp_path):
    x, y = tensors()
    train_at(alone, pictures(), [(x, y)])
    said = (tmp_path / "logs" / "run.log").read_text()
    assert said.count("val_loader does not name its classes: class i of the training set is taken for class i of") == 1


def test_class_names_give_the_numbers_of_the_classes_of_a_folder(settings, few_digits):
    order = [DIGITS[position] for position in ORDER]
    train, val, test = prepare_dataloaders(few_digits, num_workers=0, image_size=32)
    mapped = Loaders(train, val, test, own=[train, val, test])
    number_alike(Config(class_names=tuple(order)), mapped)
    for loader in mapped.by_role().values():
        for batch in loader:
            folders = [Path(loader.dataset.source.samples[index].path).parent.name for index in batch.indices]
            assert [order[label] for label in batch.labels] == folders
    result = train_at({**settings, "alpha": 0.0, "class_names": order})
    assert list(result["test_results"]["per_class"]) == order
    train_at({"resume": str(Path(settings["save_dir"], "run_last.pth")), "epochs": 2})


def test_evaluate_finds_the_networks_classes_in_a_loader_of_any_order(caplog):
    torch.manual_seed(0)
    network = named(create_model("CifarResNet-8", 4), ANIMALS)
    right = evaluate_model(network, pictures())
    with caplog.at_level(logging.INFO, "attention_transfer"):
        other = evaluate_model(network, pictures(("dog", "cat", "bee", "ant")))
    assert other["confusion_matrix"] == right["confusion_matrix"]
    assert other["per_class"] == right["per_class"]
    assert "the data set and the network number the same classes differently" in caplog.text


def test_evaluate_refuses_classes_that_the_network_does_not_know():
    network = named(create_model("CifarResNet-8", 4), ANIMALS)
    with pytest.raises(DataError, match="has the classes ant, bee, cat, cow, and the network ant, bee, cat, dog"):
        evaluate_model(network, DataLoader(Renamed("cow")))


def test_evaluate_says_where_the_network_does_not_name_its_classes(caplog):
    with caplog.at_level(logging.INFO, "attention_transfer"):
        report = evaluate_model(create_model("CifarResNet-8", 4), pictures())
    assert list(report["per_class"]) == list(ANIMALS)
    assert caplog.text.count("the network does not name its classes") == 1
    own = torch.nn.Sequential(create_model("CifarResNet-8", 5))
    for unknown in (create_model("CifarResNet-8", 5), own):
        with pytest.raises(DataError, match=r"the network tells 5 classes apart, but the data set 4 \(ant, bee"):
            evaluate_model(unknown, pictures())


def test_the_same_run_does_not_go_on_with_its_classes_in_another_order(alone, tmp_path):
    train_at(alone, pictures(), pictures())
    path = str(tmp_path / "checkpoints" / "run_last.pth")
    other = ("dog", "cat", "bee", "ant")
    with pytest.raises(ConfigError, match=r"the classes ant, bee, cat, dog, and this run's data have dog, cat, bee"):
        train_at({**alone, "epochs": 3, "resume": path}, pictures(other), pictures(other))
    assert len(train_at({**alone, "epochs": 3, "resume": path}, pictures(), pictures())["training_history"]) == 3


def test_another_run_that_starts_there_finds_its_classes_by_name(alone, tmp_path):
    train_at(alone, pictures(), pictures())
    path = str(tmp_path / "checkpoints" / "run_last.pth")
    begin = {"epochs": 3, "resume": path, "save_dir": alone["save_dir"], "log_dir": alone["log_dir"]}
    right = train_at({**begin, "experiment_name": "right"}, pictures(), pictures())
    other = ("dog", "cat", "bee", "ant")
    result = train_at({**begin, "experiment_name": "other"}, pictures(other), pictures(other))
    assert result["config"]["class_names"] == ANIMALS
    assert without_clock(result["training_history"]) == without_clock(right["training_history"])


def test_another_run_that_starts_there_may_learn_other_classes_which_is_said(alone, tmp_path):
    train_at(alone, pictures(), pictures())
    path = str(tmp_path / "checkpoints" / "run_last.pth")
    begin = {"epochs": 3, "resume": path, "save_dir": alone["save_dir"], "log_dir": alone["log_dir"]}
    result = train_at({**begin, "experiment_name": "new"}, DataLoader(Renamed("cow"), 8), DataLoader(Renamed("cow"), 8))
    assert result["config"]["class_names"] == ("ant", "bee", "cat", "cow")
    assert "no 'cow'" in (tmp_path / "logs" / "new.log").read_text()


def test_nobodys_names_are_kept_apart_from_names_that_are_numbers(alone, tmp_path):
    x, y = tensors()
    path = tmp_path / "checkpoints" / "run_best.pth"
    result = train_at(alone, [(x, y)], [(x, y)])
    assert result["config"]["class_names"] is None
    assert load_model(path, "cpu")["class_names"] == ["0", "1", "2", "3"]
    assert network_classes(load_teacher_model(path, device="cpu")).names is None
    train_at({**alone, "class_names": ["0", "1", "2", "3"]}, [(x, y)], [(x, y)])
    assert network_classes(load_teacher_model(path, device="cpu")).names == ("0", "1", "2", "3")


def test_names_that_an_earlier_version_made_up_are_none(alone, tmp_path):
    x, y = tensors()
    path = tmp_path / "checkpoints" / "run_best.pth"
    train_at({**alone, "class_names": ["0", "1", "2", "3"]}, [(x, y)], [(x, y)])
    content = read_checkpoint(path)
    del content["training"]["data_classes"]
    write_checkpoint(path, {key: value for key, value in content.items() if key not in ("format", "version")})
    assert network_classes(load_teacher_model(path, device="cpu")).names is None
    loaded = load_model(path, "cpu")
    assert loaded["config"]["class_names"] is None
    assert evaluate_model(loaded["model"], pictures(), loaded["config"])["per_class"].keys() == set(ANIMALS)


def test_the_trial_of_number_formats_hears_the_teacher_by_name_too(digits_teacher):
    runtime = Runtime(torch.device("cpu"))
    config = Config(alpha=1.0, num_classes=3, class_names=("7", "2", "0"))
    step = training_step(config, runtime, create_model("CifarResNet-8", 3), digits_teacher, (4, 3, 32, 32))
    step("fp32", 4)
