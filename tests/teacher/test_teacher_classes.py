"""The classes of teacher and student are matched by name."""

from __future__ import annotations

import copy

import pytest
import torch
from support.images.named_classes import DIGITS, ORDER, distilling, named
from support.runs import tensors, without_clock

from attention_transfer import TeacherError, compute_at_loss, create_model, train_at, validate
from attention_transfer.config import Config
from attention_transfer.distributed import Runtime
from attention_transfer.networks.class_lists import imagenet_categories, imagenet_synsets
from attention_transfer.training.precision.trial import training_step

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(settings, tmp_path):
    return distilling(settings, tmp_path)


def turned(network, order, names):
    """The same network, which puts out its logits in another order, bit for bit, and names them so."""
    other = copy.deepcopy(network)
    other.register_forward_hook(lambda module, arguments, logits: logits[:, list(order)])
    return named(other, [names[position] for position in order])


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


def test_the_trial_of_number_formats_hears_the_teacher_by_name_too(digits_teacher):
    runtime = Runtime(torch.device("cpu"))
    config = Config(alpha=1.0, num_classes=3, class_names=("7", "2", "0"))
    step = training_step(config, runtime, create_model("CifarResNet-8", 3), digits_teacher, (4, 3, 32, 32))
    step("fp32", 4)
