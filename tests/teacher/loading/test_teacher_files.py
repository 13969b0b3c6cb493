"""Weights in the files of any training script: wherever they lie, whatever their names begin with, with any head."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attention_transfer import ConfigError, TeacherError, compute_at_loss, create_model, load_teacher_model, train_at
from attention_transfer.checkpoint import weights_digest
from attention_transfer.networks.registry import HeadlessCard, card_of
from attention_transfer.seeding import seed_everything

pytestmark = pytest.mark.slow

FAST = {"model": "CifarResNet-8", "precision": "fp32", "teacher_precision": "fp32", "batch_size": 60}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network(seed=0, classes=10):
    torch.manual_seed(seed)
    model = create_model("CifarResNetB-8", classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def averaged():
    return network(1)


@pytest.fixture
def load(tmp_path, caplog):
    """The teacher out of a file of such a content; what was said is in caplog."""
    caplog.set_level(logging.INFO, "attention_transfer")

    def load_content(content, **options):
        torch.save(content, tmp_path / "t.pth")
        return load_teacher_model(tmp_path / "t.pth", 10, "cpu", **options)

    return load_content


def is_same(teacher, model):
    return torch.equal(teacher(IMAGES), model(IMAGES))


def under(prefix, weights):
    return {f"{prefix}{key}": tensor for key, tensor in weights.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.", "student.", "teacher.",
        "module.model.", "module._orig_mod.", "model.backbone.", "any.word.at.all.",
    ],
)  # fmt: skip
def test_whatever_all_names_begin_with_is_taken_off(load, model, prefix):
    assert is_same(load({"state_dict": under(prefix, model.state_dict())}), model)


@pytest.mark.parametrize(
    "key",
    [
        "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params",
        "state_dict_ema", "model_ema", "ema", "ema_state_dict", "swa_model", "anything",
    ],
)  # fmt: skip
def test_weights_are_found_under_any_key(load, model, key):
    assert is_same(load({key: model.state_dict(), "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}), model)


def test_weights_are_found_where_dicts_lie_in_dicts(load, model):
    assert is_same(
        load({"run": {"checkpoint": {"model": {"state_dict": under("module.", model.state_dict())}}}}), model
    )


def test_names_outside_the_network_are_left_out_and_said(load, model, caplog):
    beside = {"criterion.weight": torch.ones(10), "loss_fn.projector.weight": torch.ones(4, 4)}
    assert is_same(load({"state_dict": {**under("model.", model.state_dict()), **beside}}), model)
    assert "left out are criterion.weight, loss_fn.projector.weight" in caplog.text


def test_averaged_weights_come_first_and_that_is_said(load, model, averaged, caplog):
    content = {"state_dict": model.state_dict(), "state_dict_ema": averaged.state_dict()}
    assert is_same(load(content), averaged)
    assert "holds weights under state_dict_ema, and also under state_dict" in caplog.text
    assert is_same(load(content, teacher_key="state_dict"), model)


def test_weights_under_keys_that_are_equally_good_are_an_error_that_names_the_setting(load, model, averaged):
    content = {"student": {"weights": model.state_dict()}, "teacher": {"weights": averaged.state_dict()}}
    with pytest.raises(TeacherError, match=r"several networks: student\.weights, teacher\.weights; .*teacher_key"):
        load(content)
    assert is_same(load(content, teacher_key="teacher.weights"), averaged)


def test_two_networks_in_one_state_dict_are_an_error_and_teacher_key_chooses(load, model, averaged):
    content = {"state_dict": {**under("student.", model.state_dict()), **under("teacher.net.", averaged.state_dict())}}
    with pytest.raises(TeacherError, match="several networks") as raised:
        load({"state_dict": {**under("a.", model.state_dict()), **under("b.", averaged.state_dict())}})
    assert "state_dict.a, state_dict.b" in str(raised.value)
    assert is_same(load(content, teacher_key="state_dict.teacher"), averaged)
    assert is_same(load(content, teacher_key="state_dict.student"), model)


@pytest.mark.parametrize("key", ["ema", "model.weights", "optimizer", "epoch"])
def test_a_teacher_key_without_weights_is_an_error_with_the_keys_that_have_some(load, model, key):
    with pytest.raises(TeacherError, match=rf"teacher_key is '{key}'.*no weights there\. Weights are under model"):
        load({"model": model.state_dict(), "epoch": 3, "optimizer": {"state": {0: torch.ones(2, 2)}}}, teacher_key=key)


def test_teacher_key_says_nothing_of_a_checkpoint_of_ours(tmp_path, model):
    from attention_transfer.checkpoint import write_checkpoint

    card = {"name": "CifarResNetB-8", "num_classes": 10, "class_names": None}
    write_checkpoint(tmp_path / "t.pth", {"card": card, "model_state_dict": model.state_dict()})
    assert is_same(load_teacher_model(tmp_path / "t.pth", device="cpu", teacher_key="model_state_dict"), model)
    with pytest.raises(TeacherError, match="leave teacher_key out"):
        load_teacher_model(tmp_path / "t.pth", device="cpu", teacher_key="training.best_weights")


def test_what_torchs_averaged_model_and_thops_profiler_add_is_left_out_and_said(load, model, caplog):
    swa = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    swa.update_parameters(model)
    profiled = {
        f"{name}.{what}".lstrip("."): torch.zeros(1)
        for name, _ in model.named_modules()
        for what in ("total_ops", "total_params")
    }
    assert is_same(load(swa.state_dict()), model)
    assert is_same(load({**model.state_dict(), **profiled}), model)
    assert "left out: n_averaged" in caplog.text
    assert "left out: total_ops, total_params" in caplog.text


def test_single_values_among_the_weights_are_left_out_and_said(load, model, caplog):
    assert is_same(load({**model.state_dict(), "epoch": 3, "arch": "resnet8"}), model)
    assert "left out: arch, epoch" in caplog.text


def test_files_from_before_batch_norm_counted_its_batches_are_read(load, model):
    assert is_same(load({k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}), model)


def without_head(model):
    return {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("fc.")}


def renamed_head(model, name):
    return {key.replace("fc.", name): tensor for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ["fc.1.", "fc.0.", "classifier.", "linear.", "head.fc."])
def test_a_single_linear_behind_dropout_or_of_another_name_is_the_head(load, model, caplog, name):
    teacher = load(renamed_head(model, name))
    assert is_same(teacher, model)
    assert card_of(teacher).num_classes == 10
    assert f"its head is the Linear '{name[:-1]}'" in caplog.text


def test_a_head_without_a_bias_is_one_whose_bias_is_zero(load, model):
    teacher = load({key: tensor for key, tensor in model.state_dict().items() if key != "fc.bias"})
    assert torch.allclose(teacher(IMAGES) + model.fc.bias, model(IMAGES), atol=1e-6)


HEADS = {
    "none": {},
    "a sequence": {"fc.0.weight": (32, 64), "fc.0.bias": (32,), "fc.2.weight": (10, 32), "fc.2.bias": (10,)},
    "a sequence with a norm": {
        "classifier.0.weight": (64,), "classifier.0.bias": (64,), "classifier.0.running_mean": (64,),
        "classifier.0.running_var": (64,), "classifier.1.weight": (10, 64), "classifier.1.bias": (10,),
    },
}  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_without_a_head_that_can_be_built_there_is_attention_and_no_distillation(load, model, caplog, head):
    teacher = load({**without_head(model), **{key: torch.randn(shape) for key, shape in HEADS[head].items()}})
    assert isinstance(card_of(teacher), HeadlessCard)
    assert card_of(teacher).name == "CifarResNetB-8"
    assert "good for attention transfer alone, not for distillation" in caplog.text
    student, labels = create_model("CifarResNet-8", 10), torch.tensor([1, 2])
    expected = compute_at_loss(student.eval(), model, IMAGES, labels)
    losses = compute_at_loss(student.eval(), teacher, IMAGES, labels)
    assert torch.equal(losses.attention, expected.attention)
    assert losses.kd == 0
    with pytest.raises(TeacherError, match=r"alpha > 0 distils logits.*without a head.*set alpha=0"):
        compute_at_loss(student, teacher, IMAGES, labels, {"alpha": 0.5})


def test_a_teacher_without_a_head_is_the_same_whatever_the_seed(load, model):
    digests = set()
    for seed in (0, 1):
        seed_everything(seed)
        digests.add(weights_digest(load(without_head(model))))
    assert len(digests) == 1


def test_a_run_learns_from_a_teacher_without_a_head_and_refuses_to_distil(settings, tmp_path, model):
    torch.save({"backbone": without_head(model)}, tmp_path / "t.pth")
    run = {**settings, **FAST, "teacher_model": str(tmp_path / "t.pth"), "teacher_key": "backbone"}
    results = train_at(run)
    assert results["training_history"][0]["train_attention"] > 0
    assert results["config"]["teacher_key"] == "backbone"
    with pytest.raises(TeacherError, match="without a head"):
        train_at({**run, "alpha": 0.5, "experiment_name": "other"})


def test_a_run_goes_on_where_the_same_teacher_lies_under_another_key(settings, tmp_path, model):
    torch.save({"a": model.state_dict(), "b": network(1).state_dict()}, tmp_path / "one.pth")
    torch.save({"b": {"net": model.state_dict()}, "a": network(1).state_dict()}, tmp_path / "two.pth")
    run = {**settings, **FAST, "teacher_model": str(tmp_path / "one.pth"), "teacher_key": "a"}
    train_at(run)
    onwards = {**run, "epochs": 2, "resume": "auto", "teacher_model": str(tmp_path / "two.pth"), "teacher_key": "b.net"}
    assert len(train_at(onwards)["training_history"]) == 2
    with pytest.raises(TeacherError, match="was trained with a teacher whose weights"):
        train_at({**onwards, "epochs": 3, "teacher_key": "a"})


def test_an_empty_teacher_key_is_refused():
    with pytest.raises(ConfigError, match="teacher_key is ''"):
        train_at({"teacher_key": ""})


def test_a_file_that_fits_nothing_is_told_with_the_nearest_network_and_what_differs(load, model):
    weights = under("module.", model.state_dict())
    del weights["module.layer3.0.bn2.bias"]
    weights["module.layer1.0.se.weight"] = torch.ones(4)
    weights["module.conv1.weight"] = torch.ones(16, 1, 3, 3)
    with pytest.raises(TeacherError) as raised:
        load(weights)
    for words in (
        "fits no registered network",
        f"The nearest is CifarResNetB-8: {len(model.state_dict()) - 2} tensors agree",
        "missing layer3.0.bn2.bias",
        "unexpected layer1.0.se.weight",
        "other shapes: conv1.weight is [16, 1, 3, 3] instead of [16, 3, 3, 3]",
        "train_at(teacher=...)",
    ):
        assert words in str(raised.value)


def test_a_teacher_arch_that_does_not_fit_is_told_with_what_differs(load, model):
    with pytest.raises(
        TeacherError, match=r"teacher_arch is 'CifarResNetB-14'.*missing layer1\.1.*fits CifarResNetB-8"
    ):
        load(model.state_dict(), teacher_arch="cifarresnetb-14")


@pytest.mark.parametrize("extra", [{"attention.conv.weight": (16, 16, 3, 3)}, {"layer1.0.gate.weight": (64, 64)}])
def test_a_network_with_more_in_it_is_not_taken_for_the_one_without(load, model, extra):
    with pytest.raises(TeacherError, match=r"nearest is CifarResNetB-8: \d+ tensors agree; unexpected"):
        load({**model.state_dict(), **{key: torch.ones(shape) for key, shape in extra.items()}})


def test_a_torchvision_detector_lends_its_trunk(tmp_path, caplog):
    trunk = create_model("ResNet18", 2).state_dict()
    weights = {f"backbone.body.{key}": value for key, value in trunk.items() if not key.startswith("fc.")}
    weights = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    torch.save({**weights, "rpn.head.conv.weight": torch.ones(4, 4, 3, 3)}, tmp_path / "t.pth")
    with caplog.at_level(logging.INFO, "attention_transfer"):
        teacher = load_teacher_model(tmp_path / "t.pth", device="cpu")
    assert card_of(teacher) == HeadlessCard("ResNet18", 1)
    assert "names begin with 'backbone.body.'; left out are rpn.head.conv.weight" in caplog.text


def command(tokens):
    from attention_transfer.cli.app import main

    with pytest.raises(SystemExit) as ended:
        main(tokens)
    return ended.value.code


def test_evaluate_refuses_weights_without_a_head_and_info_tells_of_it(tmp_path, model, few_digits, capsys):
    torch.save(without_head(model), tmp_path / "t.pth")
    arguments = ["evaluate", str(tmp_path / "t.pth"), "--data-dir", str(few_digits), "--image-size", "32"]
    assert command([*arguments, "--num-workers", "0", "--device", "cpu"]) == 2
    assert "has no head" in capsys.readouterr().err
    assert command(["info", str(tmp_path / "t.pth")]) == 0
    assert "none: it has no head" in capsys.readouterr().out


def test_evaluate_takes_the_weights_that_teacher_key_names(tmp_path, model, few_digits, capsys):
    torch.save({"one": model.state_dict(), "two": network(1).state_dict()}, tmp_path / "t.pth")
    arguments = ["evaluate", str(tmp_path / "t.pth"), "--data-dir", str(few_digits), "--image-size", "32"]
    arguments += ["--num-workers", "0", "--device", "cpu"]
    assert command(arguments) == 2
    assert "teacher_key" in capsys.readouterr().err
    assert command([*arguments, "--teacher-key", "two"]) == 0
