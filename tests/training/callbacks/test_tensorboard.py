"""What a run leaves for TensorBoard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attention_transfer import create_model, train_at


@pytest.fixture(scope="module")
def events(few_digits, tmp_path_factory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path_factory.mktemp("tensorboard")
    torch.manual_seed(1)
    results = train_at(
        {
            "model": "CifarResNet-8", "data_dir": str(few_digits), "image_size": 16, "num_workers": 0, "epochs": 3,
            "alpha": 0.1, "print_freq": 2, "figure_freq": 3, "device": "cpu", "experiment_name": "run",
            "precision": "fp32", "teacher_precision": "fp32",
            "save_dir": str(folder / "c"), "log_dir": str(folder / "l"),
        },
        teacher=create_model("CifarResNet-14", 10),
    )  # fmt: skip
    accumulator = EventAccumulator(str(folder / "l" / "run"), size_guidance={"images": 0, "scalars": 0})
    accumulator.Reload()
    return accumulator, results


def test_every_figure_of_an_epoch_is_a_scalar(events):
    accumulator, results = events
    tags = set(accumulator.Tags()["scalars"])
    stages = {f"attention_stage_{i}" for i in range(3)}
    for name in {"loss", "accuracy", "classification", "kd", "attention"} | stages:
        assert {f"{name}/train", f"{name}/val"} <= tags
    assert {"run/lr", "run/images_per_second", "batch/loss", "batch/accuracy"} <= tags
    losses = [event.value for event in accumulator.Scalars("loss/train")]
    assert losses == pytest.approx([record["train_loss"] for record in results["training_history"]], rel=1e-6)


def test_points_are_at_the_steps_of_the_run(events):
    accumulator, _ = events
    assert [event.step for event in accumulator.Scalars("loss/val")] == [3, 6, 9]
    assert [event.step for event in accumulator.Scalars("batch/loss")] == [2, 5, 8]


def test_attention_is_drawn_at_first_every_few_epochs_and_at_last(events):
    accumulator, _ = events
    drawn = accumulator.Images("attention")
    assert [image.step for image in drawn] == [3, 9]
    assert drawn[0].width > 200
    assert drawn[0].encoded_image_string != drawn[1].encoded_image_string


def test_figure_freq_0_draws_nothing(settings, tmp_path):
    train_at({**settings, "model": "CifarResNet-8", "figure_freq": 0})
    assert "attention" not in points(tmp_path / "logs" / "run")


def test_a_run_is_one_file(events):
    accumulator, _ = events
    assert len(list(Path(accumulator.path).glob("events.out.tfevents.*"))) == 1


def test_hyperparameters_come_with_the_final_metric(events):
    accumulator, results = events
    assert "_hparams_/session_start_info" in accumulator.summary_metadata
    (best,) = accumulator.Scalars("hparam/best_accuracy")
    assert best.value == pytest.approx(results["best_accuracy"])
    (test,) = accumulator.Scalars("hparam/test_accuracy")
    assert test.value == pytest.approx(results["test_results"]["accuracy"])


def points(folder):
    """The steps of all points of every tag, of whatever kind."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance=dict.fromkeys(("images", "scalars", "tensors"), 0))
    accumulator.Reload()
    kinds = {"scalars": accumulator.Scalars, "images": accumulator.Images, "tensors": accumulator.Tensors}
    return {tag: [point.step for point in of(tag)] for kind, of in kinds.items() for tag in accumulator.Tags()[kind]}


def test_a_finished_run_that_is_resumed_writes_no_point_twice(settings, tmp_path):
    settings = {**settings, "model": "CifarResNet-8", "epochs": 2}
    train_at(settings)
    once = points(tmp_path / "logs" / "run")
    assert len(once["hparam/best_accuracy"]) == len(once["hparam/test_accuracy"]) == 1
    for _ in range(2):
        assert train_at({**settings, "resume": "auto"})["status"] == "finished"
    assert points(tmp_path / "logs" / "run") == once


def test_a_finished_run_that_goes_on_for_more_epochs_has_the_points_of_one_that_had_them_at_once(settings, tmp_path):
    settings = {**settings, "model": "CifarResNet-8", "figure_freq": 3}
    train_at({**settings, "epochs": 1})
    train_at({**settings, "epochs": 2, "resume": "auto"})
    train_at({**settings, "epochs": 2, "experiment_name": "whole"})
    assert points(tmp_path / "logs" / "run") == points(tmp_path / "logs" / "whole")
