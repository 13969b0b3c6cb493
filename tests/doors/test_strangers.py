"""Every file that docs/extending.md shows goes in from outside the package: as a program, which is resumed once."""

from __future__ import annotations

import ast
import csv
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from support import warm
from support.runs import without_clock
from support.transformers import shaken

import attention_transfer
from attention_transfer.cache.folder import entries
from attention_transfer.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text()
FILES = {
    re.match(r"# (\w+\.py): ", block)[1]: block for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
}
"""The strangers' files by name."""

REPORTED = {
    "jensen_shannon.py": ["jensen_shannon", "jensen_shannon_agreement"],
    "same_slopes.py": ["same_slopes"],
    "same_embedding.py": ["same_embedding"],
    "same_attention.py": ["same_attention"],
}
"""What each loss term reports."""


class Stranger:
    """One of the files, in a folder of its own, as a program that trains on a few digits."""

    def __init__(self, name, folder, settings):
        self.script, self.settings = folder / name, settings

    def train(self, run="run", **settings):
        """The summary of a run of this name, with settings in the place of those that the file has."""
        given = {**self.settings, "experiment_name": run, **settings}
        tree = ast.parse(FILES[self.script.name])
        [config] = [
            node for node in ast.walk(tree) if isinstance(node, ast.Call) and called(node) == "create_at_config"
        ]
        config.keywords = [each for each in config.keywords if each.arg not in given]
        assert any(each.arg == "resume" for each in config.keywords)
        config.keywords += [ast.keyword(key, ast.Constant(value)) for key, value in given.items()]
        self.script.write_text(ast.unparse(tree))
        done = warm.run(self.script, cwd=self.script.parent)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(Path(given["log_dir"], f"{run}_summary.json").read_text())

    def whole_and_resumed(self):
        """The summary of a run of two epochs; and of one that was ended after the first, and resumed by itself."""
        whole = self.train("whole", epochs=2)
        self.train("parted", epochs=1)
        resumed = self.train("parted", epochs=2)
        assert [record["epoch"] for record in resumed["history"]] == [1, 2]
        assert without_clock(resumed["history"]) == without_clock(whole["history"])
        one, other = (self.checkpoint(run) for run in ("whole", "parted"))
        for key, value in one["model_state_dict"].items():
            assert torch.equal(value, other["model_state_dict"][key]), key
        return whole, resumed

    def checkpoint(self, run):
        return read_checkpoint(Path(self.settings["save_dir"], f"{run}_last.pth"))


def called(node):
    return getattr(node.func, "id", None)


@pytest.fixture
def stranger(settings, eighty_digits, tmp_path, teacher):
    torch.save(teacher.state_dict(), tmp_path / "teacher.pth")
    small = {"image_size": 16, "batch_size": 20, "teacher_model": "teacher.pth", "data_dir": str(eighty_digits)}
    own = {**settings, **small, "model": "CifarResNet-8", "cache_dir": str(tmp_path / "cache")}
    return lambda name, **changes: Stranger(name, tmp_path, {**own, **changes})


def test_the_page_has_a_file_for_every_door():
    of_callbacks = ["sign_momentum.py", "table.py", "budget.py"]
    assert list(FILES) == ["patches.py", "strongest.py", *REPORTED, *of_callbacks]


@pytest.mark.parametrize("name", FILES)
def test_a_strangers_file_uses_public_names_alone(name):
    tree = ast.parse(FILES[name])
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "attention" in node.module]
    assert [node.module for node in imported] == ["attention_transfer"]
    assert {each.name for each in imported[0].names} <= set(attention_transfer.__all__)
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not [each for each in attributes if each.startswith("_") and not each.startswith("__")]


def test_a_network_of_a_strangers_is_a_student_by_name_and_a_teacher_by_its_weights(stranger, tmp_path):
    program = stranger("patches.py", model="Patches")
    whole, resumed = program.whole_and_resumed()
    assert resumed["config"]["model"] == "Patches"
    assert whole["history"][0]["train_attention_stage_1"] > 0
    torch.save(program.checkpoint("whole")["model_state_dict"], tmp_path / "patches.pth")
    taught = program.train("taught", model="CifarResNet-8", teacher_model="patches.pth", epochs=1)
    assert taught["history"][0]["train_attention"] > 0


def test_a_map_function_of_a_strangers_is_what_is_compared_and_is_cached(stranger, tmp_path):
    program = stranger("strongest.py")
    _, resumed = program.whole_and_resumed()
    assert resumed["history"][1]["train_attention"] > 0
    [kinds] = [[entry for entry in entries(tmp_path / "cache") if entry.kind == "maps"]]
    assert len(kinds) == 2  # of train and val
    assert "0 by the teacher's network" in (tmp_path / "logs" / "parted.log").read_text()


def assert_is_a_part_of_the_loss(history, names, weight):
    """The first of the names is what is minimised."""
    own, *_ = names
    for record in history:
        assert {f"{split}_{key}" for split in ("train", "val") for key in names} <= set(record)
        assert record[f"train_{own}"] > 0
        assert record["train_loss"] == pytest.approx(
            record["train_classification"] + weight * record[f"train_{own}"], rel=1e-4
        )


@pytest.mark.parametrize("name", [name for name in REPORTED if name != "same_attention.py"])
def test_a_loss_term_of_a_strangers_is_minimised_and_reported(stranger, name):
    own = REPORTED[name][0]
    program = stranger(name, beta=0.0)
    whole, _ = program.whole_and_resumed()
    assert_is_a_part_of_the_loss(whole["history"], REPORTED[name], 0.5 if own == "same_slopes" else 1.0)
    # what is differentiated is no part of validation
    assert all((record[f"val_{own}"] == 0) == (own == "same_slopes") for record in whole["history"])
    state = program.checkpoint("parted")["training"]["stateful"].get(f"the loss term {own}", {})
    assert list(state) == (["projection.weight", "projection.bias"] if own == "same_embedding" else [])


def test_a_term_of_a_strangers_reads_attention_probabilities(stranger, tmp_path):
    torch.manual_seed(0)
    torch.save(shaken(timm.create_model("test_vit", num_classes=10)).state_dict(), tmp_path / "vit.pth")
    sizes = {"image_size": 160, "teacher_model": "vit.pth", "teacher_arch": "timm/test_vit", "model": "timm/test_vit"}
    whole, _ = stranger("same_attention.py", **sizes).whole_and_resumed()
    assert_is_a_part_of_the_loss(whole["history"], REPORTED["same_attention.py"], 1.0)


def test_an_optimizer_and_a_schedule_of_a_strangers_train_and_resume(stranger):
    program = stranger("sign_momentum.py")
    _, resumed = program.whole_and_resumed()
    assert [record["lr"] for record in resumed["history"]] == [1e-3, 0.5e-3]
    kept = program.checkpoint("parted")["training"]["optimizer"]["state"]
    assert all(list(of_parameter) == ["mean"] for of_parameter in kept.values())


def test_a_tracker_of_a_strangers_goes_on_with_its_record(stranger, tmp_path):
    _, resumed = stranger("table.py").whole_and_resumed()
    tables = [list(csv.DictReader(path.open())) for path in sorted((tmp_path / "tables").iterdir())]
    assert [[row["epoch"] for row in rows] for rows in tables] == [["1", "2"]] * 2
    assert [float(row["val_loss"]) for row in tables[1]] == [record["val_loss"] for record in resumed["history"]]


def test_a_callback_of_a_strangers_stops_the_run_and_remembers_over_resumes(stranger, monkeypatch):
    monkeypatch.setitem(FILES, "budget.py", FILES["budget.py"].replace("batches=5000", "batches=5"))
    program = stranger("budget.py", epochs=3)
    stopped = program.train()
    assert (stopped["status"], stopped["error"]) == ("stopped", "the budget is spent")
    assert program.checkpoint("run")["training"]["stateful"]["the callback Budget"] == {"left": 0}
    batches = program.checkpoint("run")["training"]["step"]
    assert batches == 5
    again = program.train()
    assert again["status"] == "stopped"
    assert program.checkpoint("run")["training"]["step"] == batches + 1
