"""Several processes train the same student as one would."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from support import ranks, warm

WORKER = Path(__file__).parents[1] / "support" / "workers" / "process_worker.py"


pytestmark = [pytest.mark.speed, pytest.mark.slow]


def launch(tmp_path, processes, name, launcher=None, **settings):
    """Where the processes of a run left what they came to, and what their launcher printed; None starts them itself."""
    options = tmp_path / f"{name}.settings.json"
    options.write_text(json.dumps({**settings, "out": str(tmp_path / name)}))
    if launcher is None:
        ranks.run(processes, WORKER, options)
        return tmp_path / name, ""
    module = {
        "torchrun": ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"],
        "accelerate": [
            "accelerate.commands.launch",
            "--multi_gpu",
            f"--num_processes={processes}",
            "--main_process_port=0",
        ],
    }[launcher]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = warm.run("-m", *module, str(WORKER), str(options), env=environment, cwd=WORKER.parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    return tmp_path / name, done.stdout


def run_of(tmp_path, data):
    """Settings of a run of two processes."""
    return {
        "model": "CifarResNet-8", "data_dir": str(data), "image_size": 16, "num_workers": 0, "epochs": 1,
        "device": "cpu", "precision": "fp32", "teacher_precision": "fp32", "figure_freq": 0, "batch_size": 64,
        "experiment_name": "two", "cache_dir": str(tmp_path / "cache"), "save_dir": str(tmp_path / "checkpoints"),
        "log_dir": str(tmp_path / "logs"),
    }  # fmt: skip


def cut(digits, folder, train):
    """A data set of `train` training images, with val and test of their own."""
    files = sorted(digits.rglob("*.png"))
    for split, chosen in (
        ("train", files[:: len(files) // train][:train]),
        ("val", files[1::90]),
        ("test", files[2::90]),
    ):
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
        for file in chosen:
            shutil.copy(file, folder / split / file.parent.name)
        for label in range(10):
            if not any((folder / split / str(label)).iterdir()):
                shutil.copy(sorted((digits / str(label)).iterdir())[0], folder / split / str(label))
    return len(list((folder / "train").rglob("*.png")))


@pytest.mark.parametrize("left_over", [0, 1, 7])
def test_two_processes_take_the_steps_that_one_takes_at_the_same_global_batch(tmp_path, digits_folder, left_over):
    count = cut(digits_folder, tmp_path / "data", 48 + left_over)
    assert (count - left_over) % 2 == 0
    batch_size = -(-count // 3) if left_over == 0 else (count - left_over) // 2
    common = {"do": "three_steps", "data": str(tmp_path / "data"), "batch_size": batch_size}
    alone = torch.load(launch(tmp_path, 1, "alone", **common)[0], weights_only=True)
    both = torch.load(launch(tmp_path, 2, "both", **common)[0], weights_only=True)
    assert alone["train"]["samples"] == both["train"]["samples"] == count
    for part in ("weights", "gradients"):
        for key, value in alone[part].items():
            torch.testing.assert_close(both[part][key], value, rtol=1e-6, atol=1e-6)
    for part in ("train", "val"):
        assert both[part]["figures"] == pytest.approx(alone[part]["figures"], rel=1e-6)


@pytest.mark.parametrize(
    "recipe",
    [
        {"class_weights": [0.2, 3.0, 1.0, 0.5, 2.0, 1.0, 0.1, 0.7, 1.0, 0.5], "label_smoothing": 0.1},
        {"sampler": "balanced"},
        {"attention": "gradient"},
    ],
)
def test_weights_balance_and_gradient_attention_are_those_of_the_global_batch(tmp_path, digits_folder, recipe):
    count = cut(digits_folder, tmp_path / "data", 49)
    common = {"do": "three_steps", "data": str(tmp_path / "data"), "batch_size": 24, **recipe}
    alone = torch.load(launch(tmp_path, 1, "alone", **common)[0], weights_only=True)
    both = torch.load(launch(tmp_path, 2, "both", **common)[0], weights_only=True)
    assert alone["train"]["samples"] == both["train"]["samples"] == count
    for part in ("weights", "gradients"):
        for key, value in alone[part].items():
            torch.testing.assert_close(both[part][key], value, rtol=1e-6, atol=1e-6)
    for part in ("train", "val"):
        assert both[part]["figures"] == pytest.approx(alone[part]["figures"], rel=1e-6)


def test_mixed_images_hints_and_weighted_groups_are_those_of_one_process_and_relations_agree(tmp_path, digits_folder):
    cut(digits_folder, tmp_path / "data", 49)
    weights = [0.2, 3.0, 1.0, 0.5, 2.0, 1.0, 0.1, 0.7, 1.0, 0.5]
    recipes = {
        "mixed": {"views": {"mixup": 0.4, "cutmix": 0.4}, "class_weights": weights},
        "hint": {"loss": {"hint": 2.0}},
        "groups": {"class_weights": weights, "accumulate": 2, "batch_size": 12},
        "relations": {"loss": {"logit_loss": "dist"}},
    }  # fmt: skip
    common = {"data": str(tmp_path / "data"), "batch_size": 24, "recipes": recipes, "every_rank": True}
    for processes in (1, 2):
        launch(tmp_path, processes, str(processes), do="several_times_three_steps", **common)
    for name in recipes:
        alone, first, second = (
            torch.load(tmp_path / f"{processes}.{name}.{rank}", weights_only=True)
            for processes, rank in ((1, 0), (2, 0), (2, 1))
        )
        assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items()), name
        if name == "relations":  # correlations over a batch are those of each process's share
            continue
        for part in ("weights", "gradients"):
            for key, value in alone[part].items():
                torch.testing.assert_close(first[part][key], value, rtol=1e-6, atol=1e-6, msg=f"{name} {key}")
        for part in ("train", "val"):
            assert first[part]["figures"] == pytest.approx(alone[part]["figures"], rel=1e-6), name
    projectors = [key for key in torch.load(tmp_path / "2.hint.0", weights_only=True)["gradients"] if "projec" in key]
    assert len(projectors) == 4


@pytest.mark.parametrize(
    "recipe",
    [
        {"loss": {"logit_loss": "dkd", "dkd_warmup": 0}},
        {"class_weights": [0.2, 3.0, 1.0, 0.5, 2.0, 1.0, 0.1, 0.7, 1.0, 0.5]},
        {"whole_loader": True},
    ],
)
def test_images_without_labels_count_in_two_processes_as_in_one(tmp_path, digits_folder, recipe):
    cut(digits_folder, tmp_path / "data", 49)
    files = sorted(digits_folder.rglob("*.png"))[5::60]
    (tmp_path / "unlabelled").mkdir()
    for file in files:
        shutil.copy(file, tmp_path / "unlabelled")
    common = {
        "do": "three_steps", "data": str(tmp_path / "data"), "unlabelled_dir": str(tmp_path / "unlabelled"),
        "batch_size": 24, **recipe,
    }  # fmt: skip
    alone = torch.load(launch(tmp_path, 1, "alone", **common)[0], weights_only=True)
    both = torch.load(launch(tmp_path, 2, "both", **common)[0], weights_only=True)
    assert alone["train"]["samples"] == both["train"]["samples"] == 49 + 17 + 17 + 1
    for part in ("weights", "gradients"):
        for key, value in alone[part].items():
            torch.testing.assert_close(both[part][key], value, rtol=1e-6, atol=1e-6)
    for part in ("train", "val"):
        assert both[part]["figures"] == pytest.approx(alone[part]["figures"], rel=1e-6)


@pytest.mark.parametrize("knows_length", [True, False])
def test_two_processes_that_accumulate_and_clip_take_the_steps_of_one_with_larger_batches(
    tmp_path, digits_folder, knows_length
):
    count = cut(digits_folder, tmp_path / "data", 50)
    batch_size = -(-count // 5)  # groups of two, two and one
    common = {"do": "three_steps", "data": str(tmp_path / "data"), "clip_grad": 0.5}
    alone = torch.load(launch(tmp_path, 1, "alone", batch_size=2 * batch_size, **common)[0], weights_only=True)
    settings = {**common, "batch_size": batch_size, "accumulate": 2, "knows_length": knows_length}
    both = torch.load(launch(tmp_path, 2, "both", **settings)[0], weights_only=True)
    assert alone["train"]["samples"] == both["train"]["samples"] == count
    for part in ("weights", "gradients"):
        for key, value in alone[part].items():
            torch.testing.assert_close(both[part][key], value, rtol=1e-6, atol=1e-6)
    norm = torch.stack([gradient.norm() for gradient in both["gradients"].values()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-4)


def test_two_processes_agree_on_weights_and_average_of_a_recipe_with_everything(tmp_path, few_digits):
    recipe = {
        "optimizer": "adamw", "lr": 0.003, "schedule": "cosine", "warmup_epochs": 1, "accumulate": 2, "clip_grad": 1.0,
        "ema": 0.9, "weight_decay_norms": False, "epochs": 3, "batch_size": 20,
    }  # fmt: skip
    out, _ = launch(tmp_path, 2, "out", do="whole_run", config={**run_of(tmp_path, few_digits), **recipe})
    first, second = (json.loads(out.with_suffix(f".{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    best = torch.load(tmp_path / "checkpoints" / "two_best.pth", weights_only=True)
    assert best["weights"] == "ema"
    checksum = sum(float(value.double().sum()) for value in best["model_state_dict"].values())
    assert checksum == pytest.approx(first["checksum"])


def test_a_loader_made_for_one_process_is_shared_out(tmp_path, digits_folder):
    cut(digits_folder, tmp_path / "data", 49)
    common = {"do": "three_steps", "data": str(tmp_path / "data"), "batch_size": 24}
    alone = torch.load(launch(tmp_path, 1, "alone", **common)[0], weights_only=True)
    both = torch.load(launch(tmp_path, 2, "both", whole_loader=True, **common)[0], weights_only=True)
    assert both["train"]["samples"] == alone["train"]["samples"]
    for key, value in alone["weights"].items():
        torch.testing.assert_close(both["weights"][key], value, rtol=1e-6, atol=1e-6)


def test_a_loss_that_is_no_number_in_one_process_stops_all_with_the_same_sentence(tmp_path):
    out, _ = launch(tmp_path, 2, "out", do="diverge")
    first, second = (out.with_suffix(f".{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert "batch 1: classification" in first


@pytest.mark.slow
def test_two_processes_learn_the_digits(tmp_path, digits_folder):
    config = {**run_of(tmp_path, digits_folder), "epochs": 5, "lr": 0.05, "step_size": 4}
    out, _ = launch(tmp_path, 2, "out", do="whole_run", config=config)
    assert json.loads(out.with_suffix(".0.json").read_text())["test_accuracy"] >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_a_real_run_in_two_processes_under_a_launcher_leaves_one_set_of_artefacts(tmp_path, few_digits, launcher):
    config = run_of(tmp_path, few_digits)
    out, printed = launch(tmp_path, 2, "out", launcher, do="whole_run", config=config)
    first, second = (json.loads(out.with_suffix(f".{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["two_best.pth", "two_final.pth", "two_last.pth"]
    assert len(list((tmp_path / "logs" / "two").glob("events*"))) <= 2
    assert (tmp_path / "logs" / "two.log").read_text().count("epoch 1/1:") == 1
    assert printed.count("epoch 1/1:") == 1
    summary = json.loads((tmp_path / "logs" / "two_summary.json").read_text())
    assert (summary["processes"], summary["status"]) == (2, "finished")
    assert sum(summary["splits"].values()) == 120


def test_two_processes_finish_early_in_the_same_epoch(tmp_path, few_digits):
    config = {**run_of(tmp_path, few_digits), "epochs": 40, "early_stopping": 1, "lr": 0.05, "best_by": "loss"}
    out, _ = launch(tmp_path, 2, "out", do="whole_run", config=config)
    first, second = (json.loads(out.with_suffix(f".{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    summary = json.loads((tmp_path / "logs" / "two_summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["epochs_completed"] == summary["best_epoch"] + 1 < 40


def test_two_processes_draw_other_dropout_go_on_to_the_bit_and_test_together(tmp_path, few_digits):
    # of each batch of three images the second process has one, for which it must not be normalised
    config = {**run_of(tmp_path, few_digits), "batch_size": 3, "epochs": 2}
    out, _ = launch(tmp_path, 2, "out", do="apart", config=config)
    first, second = (json.loads(out.with_suffix(f".{rank}.json").read_text()) for rank in (0, 1))
    assert first["stopped"] == second["stopped"] == "stopped"
    assert first["same"]
    assert second["same"]
    assert first["weights"] == second["weights"]
    assert len(first["masks"]) == len(second["masks"])
    assert all(one != other for one, other in zip(first["masks"], second["masks"], strict=True))
    assert first["shared"] == first["alone"] == second["shared"]
    assert first["of_shares"] == second["of_shares"] == first["of_all"]


def test_two_processes_train_the_head_alone(tmp_path, few_digits):
    from attention_transfer.checkpoint import read_checkpoint

    config = {**run_of(tmp_path, few_digits), "epochs": 2, "freeze": "backbone", "save_freq": 1}
    launch(tmp_path, 2, "out", do="whole_run", config=config)
    first, last = (read_checkpoint(tmp_path / "checkpoints" / f"two_epoch_{epoch}.pth") for epoch in (1, 2))
    changed = {
        key for key, value in last["model_state_dict"].items() if not torch.equal(value, first["model_state_dict"][key])
    }
    assert changed == {"linear.weight", "linear.bias"}


def test_two_processes_have_one_run_in_a_tracker(tmp_path, few_digits, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed, in whose local store runs are looked up")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    launch(tmp_path, 2, "out", do="whole_run", config={**run_of(tmp_path, few_digits), "trackers": ["mlflow"]})
    client = mlflow.MlflowClient()
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val_loss")] == [1]


def test_two_processes_fill_one_memory_and_one_pixel_store_and_read_them(tmp_path, few_digits):
    from attention_transfer import create_model
    from attention_transfer.cache.folder import entries
    from attention_transfer.cache.records import Records

    torch.manual_seed(0)
    torch.save(create_model("CifarResNet-8", 10).state_dict(), tmp_path / "teacher.pth")
    config = {
        **run_of(tmp_path, few_digits), "teacher_model": str(tmp_path / "teacher.pth"), "epochs": 3,
        "augment": True, "augment_views": 2,
    }  # fmt: skip
    out, _ = launch(tmp_path, 2, "out", do="whole_run", config=config)
    first, second = (json.loads(out.with_suffix(f".{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    log = (tmp_path / "logs" / "two.log").read_text()
    count = json.loads((tmp_path / "logs" / "two_summary.json").read_text())["splits"]["train"]
    assert f"epoch 1: 0 images answered from memory, {count:,} by" in log
    assert f"epoch 3: {count:,} images answered from memory, 0 by" in log
    for entry in entries(tmp_path / "cache"):
        records = Records(entry.path, entry.identity)
        assert records.present().all(), entry.path.name
        assert not records.damaged()
