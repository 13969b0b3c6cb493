"""`attention-transfer cache`: filled before any run, told, verified and cleared."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from support import warm

from attention_transfer import create_model, train_at
from attention_transfer.cache.folder import entries

pytestmark = pytest.mark.slow


def call(*words, code=0):
    done = warm.run("-m", "attention_transfer", "cache", *words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def filled(few_digits, tmp_path_factory):
    """A folder with a teacher and a cache that was filled for it."""
    folder = tmp_path_factory.mktemp("cache-command")
    torch.manual_seed(0)
    torch.save(create_model("CifarResNet-8", 10).state_dict(), folder / "teacher.pth")
    words = ["--data-dir", few_digits, "--teacher-model", folder / "teacher.pth", "--image-size", 16]
    words += ["--augment", "--num-workers", 1, "--device", "cpu", "--cache-dir", folder / "cache"]
    words += ["--teacher-precision", "fp32"]
    told = [call("prefill", *words, "--augment-views", views)[0] for views in (2, "warp")]
    return folder, words, told


def test_prefill_says_what_it_asked_for_and_a_second_time_asks_nothing(filled):
    _, words, told = filled
    assert "train: 160 answers were asked for" in told[0]
    assert "val: 20 answers were asked for" in told[0]
    assert "train: 160 answers were asked for" in told[1]
    again, _ = call("prefill", *words, "--augment-views", 2)
    assert "train: 0 answers were asked for" in again
    assert "for all of them are there already" in again


@pytest.mark.parametrize("views", [2, "warp"])
def test_a_run_after_prefill_never_runs_the_teacher(filled, few_digits, tmp_path, views):
    folder, _, _ = filled
    train_at(
        {
            "model": "CifarResNet-8", "data_dir": str(few_digits), "teacher_model": str(folder / "teacher.pth"),
            "image_size": 16, "augment": True, "augment_views": views, "epochs": 3, "num_workers": 0, "device": "cpu",
            "cache_dir": str(folder / "cache"), "save_dir": str(tmp_path), "log_dir": str(tmp_path),
            "experiment_name": "run", "precision": "fp32", "teacher_precision": "fp32", "figure_freq": 0,
        }
    )  # fmt: skip
    log = (tmp_path / "run.log").read_text()
    assert re.findall(r"(\d+) by the teacher's network", log) == ["0"] * 3


def test_info_tells_every_file_and_how_full_it_is(filled):
    folder, _, _ = filled
    told, _ = call("info", "--cache-dir", folder / "cache")
    for entry in entries(folder / "cache"):
        assert entry.path.name in told
    assert told.count("100.00 %") == len(entries(folder / "cache"))
    assert "teacher CifarResNet-8" in told


def test_verify_finds_a_flipped_bit_and_says_that_it_is_no_harm(filled):
    folder, words, _ = filled
    told, _ = call("verify", "--cache-dir", folder / "cache")
    assert "whole" in told
    assert "damaged" not in told
    maps = next(entry for entry in entries(folder / "cache") if entry.kind == "maps")
    raw = bytearray(maps.path.read_bytes())
    raw[-5] ^= 4
    maps.path.write_bytes(raw)
    told, error = call("verify", "--cache-dir", folder / "cache", code=2)
    assert f"{maps.path.name}: " in told
    assert "1 records in" in error
    assert "makes them anew" in error
    call("verify", "--cache-dir", folder / "cache")
    again = [call("prefill", *words, "--augment-views", views)[0] for views in (2, "warp")]
    assert sum(int(count) for told in again for count in re.findall(r": (\d+) answers were", told)) == 1


def test_prefill_without_views_that_come_back_is_an_error_with_a_remedy(filled):
    _, words, _ = filled
    _, error = call("prefill", *words, code=2)
    assert "augment_views is None" in error
    assert "'warp'" in error


def test_clear_removes_what_it_is_told_to(filled, tmp_path):
    cache = shutil.copytree(filled[0] / "cache", tmp_path / "cache")
    call("clear", "--cache-dir", cache, "--unused-days", 1)
    assert {entry.kind for entry in entries(cache)} == {"pixels", "maps"}
    told, _ = call("clear", "--cache-dir", cache, "--kind", "maps")
    assert "are freed" in told
    assert {entry.kind for entry in entries(cache)} == {"pixels"}
    call("clear", "--cache-dir", cache)
    assert entries(cache) == []
