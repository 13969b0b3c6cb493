"""Folders where a run wants to write files, and files where it wants folders: one sentence, with a remedy."""

from __future__ import annotations

import re

import pytest

from attention_transfer import WriteError, train_at
from attention_transfer.files import write_atomically


@pytest.fixture
def settings(settings):
    return {**settings, "model": "CifarResNet-8", "batch_size": 20, "precision": "fp32"}


@pytest.mark.parametrize("name", ["run.log", "run_summary.json"])
def test_a_folder_in_the_place_of_a_file_of_a_run_that_goes_on_is_told_with_the_remedy(settings, tmp_path, name):
    train_at(settings)
    (tmp_path / "logs" / name).unlink()
    (tmp_path / "logs" / name).mkdir()
    with pytest.raises(WriteError, match="there is a folder of this name; move it away, or set log_dir") as raised:
        train_at({**settings, "epochs": 2, "resume": "auto"})
    assert str(raised.value).startswith(f"{tmp_path / 'logs' / name} ")


@pytest.mark.parametrize("name", ["run.log", "run_summary.json"])
def test_a_folder_in_the_place_of_a_file_of_a_new_run_is_told_with_the_remedy(settings, tmp_path, name):
    (tmp_path / "logs" / name).mkdir(parents=True)
    with pytest.raises(WriteError, match="there is a folder of this name; move it away, or set log_dir"):
        train_at(settings)


def test_a_file_in_the_place_of_a_folder_is_told_with_the_remedy(settings, tmp_path):
    (tmp_path / "file").write_text("in the way")
    said = rf"but {re.escape(str(tmp_path / 'file'))} is no folder; move it away, or set log_dir to another folder\.$"
    with pytest.raises(WriteError, match=said):
        train_at({**settings, "log_dir": str(tmp_path / "file")})
    with pytest.raises(WriteError, match=said):
        train_at({**settings, "log_dir": str(tmp_path / "file" / "logs")})


def test_a_reason_that_nobody_foresaw_is_told_once_in_the_systems_words(tmp_path, monkeypatch):
    def fail(*paths):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(WriteError) as raised:
        write_atomically(tmp_path / "m.pth", b"", setting="save_dir")
    said = f"{tmp_path / 'm.pth'} cannot be written: the system says 'Input/output error'; look at {tmp_path}, or set"
    assert str(raised.value).startswith(said)
