"""What train_at refuses, and how a run ends that cannot go on."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from support.runs import InterruptedOnce, bring, tensors

from attention_transfer import ConfigError, DataError, DivergenceError, TeacherError, create_model, load_model, train_at
from attention_transfer.networks.registry import ModelCard


def test_a_label_out_of_range_is_an_error_that_names_it(settings):
    x, y = tensors()
    with pytest.raises(DataError, match="label is 3"):
        train_at({**bring(settings), "num_classes": 3}, [(x, y)])


def test_num_classes_that_contradicts_the_data_is_an_error(settings):
    with pytest.raises(ConfigError, match=r"num_classes is 7.*10 classes"):
        train_at({**settings, "num_classes": 7})


def test_class_names_other_than_the_folders_are_an_error_before_training(settings, tmp_path):
    with pytest.raises(DataError, match=r"the train split has the classes 0, .*, 9, and .* class_names a, .* no '0'"):
        train_at({**settings, "class_names": list("abcdefghij")})
    assert not (tmp_path / "logs").exists()


def test_alpha_without_a_teacher_is_an_error(settings):
    with pytest.raises(ConfigError, match=r"alpha is 0\.1, but there is no teacher"):
        train_at({**settings, "alpha": 0.1})


def test_a_teacher_that_teaches_nothing_is_a_warning(settings, teacher, caplog):
    with caplog.at_level(logging.WARNING, "attention_transfer"):
        results = train_at({**settings, "beta": 0.0, "model": "CifarResNet-8"}, teacher=teacher)
    assert "teaches nothing" in caplog.text
    record = results["training_history"][0]
    assert record["train_loss"] == record["train_classification"]
    assert record["train_attention"] > 0


def test_other_classes_matter_to_distillation_alone(settings, few_digits):
    wide = create_model("CifarResNet-8", 12)
    train_at({**settings, "model": "CifarResNet-8"}, teacher=wide)
    with pytest.raises(TeacherError, match=r"the teacher tells 12 classes apart, but the student 10 \(0, 1, 2"):
        train_at({**settings, "alpha": 0.1, "experiment_name": "wide"}, teacher=wide)
    other = create_model("CifarResNet-8", 10)
    other.card = ModelCard("CifarResNet-8", 10, tuple("abcdefghij"))
    with pytest.raises(TeacherError, match="and the teacher a, b, c, d, e, f, g, h, i, j, which has no '0'"):
        train_at({**settings, "alpha": 0.1, "experiment_name": "other"}, teacher=other)


def test_a_finished_run_is_not_overwritten_unless_asked(settings):
    train_at({**settings, "model": "CifarResNet-8"})
    with pytest.raises(ConfigError, match=r"'run'.*overwrite=True"):
        train_at({**settings, "model": "CifarResNet-8"})
    train_at({**settings, "model": "CifarResNet-8", "overwrite": True})


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_batch_and_component(settings, tmp_path):
    x, y = tensors()
    bad = x.clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(DivergenceError, match=r"epoch 1, lr .* batch 1: classification.*no checkpoint yet"):
        train_at(bring(settings), [(x, y), (bad, y)])
    summary = json.loads((tmp_path / "logs" / "run_summary.json").read_text())
    assert summary["status"] == "failed"
    assert "DivergenceError" in summary["error"]


def test_a_bad_number_in_validation_stops_the_run_before_it_is_saved(settings, tmp_path):
    x, y = tensors()
    bad = x.clone()
    bad[3] = float("inf")

    class BadLater(InterruptedOnce):
        def __iter__(self):
            self.passes += 1
            # the first pass is the look at one batch before training
            return iter([(bad, y)] if self.passes == 3 else self.batches)

    with pytest.raises(
        DivergenceError, match=r"epoch 2, validation, .*classification.*run_last\.pth \(after epoch 1\)"
    ):
        train_at({**bring(settings), "epochs": 3}, [(x, y)], BadLater([(x, y)]))
    assert load_model(tmp_path / "checkpoints" / "run_last.pth", "cpu")["epoch"] == 1
    json.loads((tmp_path / "logs" / "run_summary.json").read_text(), parse_constant=pytest.fail)


def test_the_component_that_is_no_number_is_named(settings, teacher):
    x, y = tensors()
    blind = copy.deepcopy(teacher)
    blind.conv1.weight.data.fill_(float("nan"))
    with pytest.raises(DivergenceError, match=r"batch 0: attention_stage_0"):
        train_at({**bring(settings), "num_classes": 10}, [(x, y)], teacher=blind)
    ignored = {**bring(settings), "num_classes": 10, "beta": 0.0, "overwrite": True}
    assert train_at(ignored, [(x, y)], teacher=blind)["status"] == "finished"
    with pytest.raises(DivergenceError, match=r"batch 0: kd"):
        train_at({**bring(settings), "num_classes": 10, "alpha": 1.0, "overwrite": True}, [(x, y)], teacher=blind)


def test_an_interrupt_gives_partial_results_and_the_next_run_works(settings, tmp_path):
    x, y = tensors()
    loader = InterruptedOnce([(x, y)] * 3)
    config = {**bring(settings), "num_classes": 4, "epochs": 5}
    results = train_at(config, loader)
    assert results["status"] == "stopped"
    assert len(results["training_history"]) == 1
    assert not results["model"].training
    assert json.loads((tmp_path / "logs" / "run_summary.json").read_text())["status"] == "stopped"
    resumed = train_at({**config, "resume": str(tmp_path / "checkpoints" / "run_last.pth")}, loader)
    assert len(resumed["training_history"]) == 5


def test_a_cuda_device_that_is_not_there_is_a_clear_error(settings):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ConfigError, match=r"'cuda', but this machine has 0 CUDA devices"):
        train_at({**settings, "device": "cuda"})


def test_float16_needs_a_gpu(settings):
    with pytest.raises(ConfigError, match="'fp16', which needs a CUDA device"):
        train_at({**settings, "precision": "fp16"})


def test_an_unfinished_run_of_the_same_name_is_not_wiped(settings, tmp_path):
    x, y = tensors()
    train_at({**bring(settings), "num_classes": 4, "epochs": 5}, InterruptedOnce([(x, y)] * 3))
    with pytest.raises(ConfigError, match=r"was not finished.*resume=.*run_last\.pth"):
        train_at({**bring(settings), "num_classes": 4}, [(x, y)])


def test_handlers_are_gone_after_a_run_that_failed_even_to_end(settings, tmp_path, monkeypatch):
    from attention_transfer.training.callbacks.summary import Summary

    def full(self, run, status):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Summary, "run_ended", full)
    before = list(logging.getLogger("attention_transfer").handlers)
    with pytest.raises(OSError, match="No space left"):
        train_at(bring(settings), [tensors()])
    assert logging.getLogger("attention_transfer").handlers == before
