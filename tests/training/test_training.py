"""train_at: whole runs on the handwritten digits, and the epochs that they are made of."""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing

import pytest
import torch
from support.runs import assert_same_weights, bring, tensors, without_clock

from attention_transfer import (
    create_at_config,
    create_model,
    load_model,
    prepare_dataloaders,
    train_at,
    train_epoch,
    validate,
)

FIGURES = {"loss", "accuracy", "classification", "kd", "attention"}


def test_a_run_with_a_teacher_gives_everything_that_is_promised(settings, teacher, tmp_path):
    recipe = {"image_size": 32, "alpha": 0.1, "epochs": 2, "save_freq": 2, "print_freq": 3}
    results = train_at({**settings, **recipe}, teacher=teacher)
    assert set(results) >= {
        "model", "teacher_model", "best_accuracy", "training_history", "test_results", "config", "experiment_name",
    }  # fmt: skip
    assert results["teacher_model"] is teacher
    assert not results["model"].training
    assert results["config"]["num_classes"] == 10
    assert results["config"]["class_names"] == tuple("0123456789")
    assert 0 <= results["best_accuracy"] <= 1
    assert 0 <= results["test_results"]["accuracy"] <= 1

    first, second = results["training_history"]
    stages = {"attention_stage_0", "attention_stage_1"}
    figures = {f"{split}_{name}" for split in ("train", "val") for name in FIGURES | stages}
    assert set(first) == {"epoch", "lr", "seconds", "images_per_second", "val_balanced_accuracy"} | figures
    assert (first["epoch"], second["epoch"], first["lr"]) == (1, 2, 0.01)
    total = first["train_classification"] + 0.1 * first["train_kd"] + 1000 * first["train_attention"]
    assert first["train_loss"] == pytest.approx(total, rel=1e-5)

    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in names if "tfevents" not in name] == [
        "checkpoints/run_best.pth",
        "checkpoints/run_epoch_2.pth",
        "checkpoints/run_final.pth",
        "checkpoints/run_last.pth",
        "logs/run.log",
        "logs/run_summary.json",
    ]
    assert any(name.startswith("logs/run/events.out.tfevents.") for name in names)
    assert "epoch 1 batch 3/" in (tmp_path / "logs" / "run.log").read_text()

    loaded = load_model(tmp_path / "checkpoints" / "run_best.pth", "cpu")
    assert loaded["class_names"] == list("0123456789")
    best = max(record["val_accuracy"] for record in results["training_history"])
    assert loaded["best_accuracy"] == results["best_accuracy"] == best
    for key, value in loaded["model"].state_dict().items():
        assert torch.equal(value, results["model"].state_dict()[key])


def test_the_summary_tells_the_run(settings, tmp_path, few_digits):
    results = train_at(settings)
    summary = json.loads((tmp_path / "logs" / "run_summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["config"]["model"] == "MultiBranchNet"
    assert summary["config"]["epochs"] == 1
    assert summary["class_names"] == list("0123456789")
    assert sum(summary["splits"].values()) == len(list(few_digits.rglob("*.png")))
    assert summary["history"] == results["training_history"]
    assert summary["test_results"]["accuracy"] == results["test_results"]["accuracy"]
    assert summary["best_epoch"] == 1
    assert summary["wall_time_seconds"] > 0
    assert torch.__version__.startswith(summary["versions"]["torch"])
    assert all(path.endswith(".pth") for path in summary["paths"]["checkpoints"])


def test_without_a_teacher_it_is_cross_entropy_alone_and_said_once(settings, tmp_path):
    results = train_at({**settings, "model": "CifarResNet-8"})
    record = results["training_history"][0]
    assert record["train_loss"] == record["train_classification"]
    assert record["train_kd"] == record["train_attention"] == 0
    assert (tmp_path / "logs" / "run.log").read_text().count("cross-entropy alone") == 1


@pytest.mark.speed
def test_the_same_run_twice_gives_the_same_bits(settings, teacher):
    augmented = {**settings, "augment": True, "num_workers": 2, "model": "CifarResNet-8"}
    one = train_at(augmented, teacher=teacher)
    other = train_at({**augmented, "experiment_name": "again", "num_workers": 0}, teacher=teacher)
    assert without_clock(one["training_history"]) == without_clock(other["training_history"])
    assert_same_weights(one["model"], other["model"])


def test_another_seed_gives_another_run(settings):
    one = train_at({**settings, "model": "CifarResNet-8"})
    other = train_at({**settings, "model": "CifarResNet-8", "seed": 1, "experiment_name": "other"})
    assert one["training_history"][0]["train_loss"] != other["training_history"][0]["train_loss"]


def test_a_run_without_a_name_gets_a_readable_unique_one(settings):
    unnamed = {**settings, "experiment_name": None, "model": "CifarResNet-8"}
    names = {train_at(unnamed)["experiment_name"] for _ in range(2)}
    assert len(names) == 2
    assert all(name.startswith("CifarResNet-8-plain-") for name in names)


@pytest.mark.slow
@pytest.mark.speed
def test_one_process_can_train_again_and_again_in_other_precisions(settings, teacher):
    log = logging.getLogger("attention_transfer")
    handlers, children = list(log.handlers), set(multiprocessing.active_children())
    for precision in ("fp32", "bf16", "auto", "bf16"):
        results = train_at(
            {**settings, "precision": precision, "overwrite": True, "model": "CifarResNet-8", "num_workers": 1},
            teacher=teacher,
        )
        assert results["config"]["precision"] in (("fp32", "bf16") if precision == "auto" else (precision,))
    assert log.handlers == handlers
    # a child that an earlier test has left may end meanwhile
    assert set(multiprocessing.active_children()) <= children
    assert not any(module._forward_hooks for module in [*teacher.modules(), *results["model"].modules()])


def test_a_loop_of_ones_own_gets_a_fresh_order_and_fresh_views_each_epoch(few_digits):
    train, *_ = prepare_dataloaders(few_digits, augment=True, num_workers=1, image_size=32)
    seen = []
    model = create_model("CifarResNet-8", 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    class Spy:
        def __iter__(self):
            for batch in train:
                seen.append(batch)
                yield batch

    for _ in range(2):
        train_epoch(model, None, Spy(), optimizer, "cpu", {})
    first, second = seen[: len(train)], seen[len(train) :]
    assert sorted(torch.cat([b.indices for b in first])) == sorted(torch.cat([b.indices for b in second]))
    assert not torch.equal(torch.cat([b.indices for b in first]), torch.cat([b.indices for b in second]))
    where = {int(i): image for b in first for i, image in zip(b.indices, b.images, strict=True)}
    again = {int(i): image for b in second for i, image in zip(b.indices, b.images, strict=True)}
    assert not any(torch.equal(where[i], again[i]) for i in where)


def test_means_are_over_samples_not_over_batches():
    x, y = tensors(20)
    model = create_model("CifarResNet-8", 4)
    uneven = validate(model, None, [(x[:17], y[:17]), (x[17:], y[17:])], "cpu", {})
    whole = validate(model, None, [(x, y)], "cpu", {})
    assert uneven == pytest.approx(whole, rel=1e-5)


def test_validation_leaves_the_student_as_it_was():
    x, y = tensors()
    model = create_model("CifarResNet-8", 4).train()
    before = copy.deepcopy(model.state_dict())
    validate(model, None, [(x, y)], "cpu", create_at_config())
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_layers_choose_what_is_compared_in_a_run(settings, teacher):
    x, y = tensors(size=24)
    images = x[..., :16]
    config = {**bring(settings), "layers": ["layer1", "layer2:layer3"]}
    record = train_at(config, [(images, y)], [(images, y)], teacher=teacher)["training_history"][0]
    assert {key for key in record if "stage" in key} == {
        f"{split}_attention_stage_{i}" for split in ("train", "val") for i in (0, 1)
    }
