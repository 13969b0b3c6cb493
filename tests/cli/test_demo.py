"""`attention-transfer demo`, for one epoch on some of the digits."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image
from support import warm

import attention_transfer.cli.commands.demo
from attention_transfer.cli.app import main
from attention_transfer.cli.commands.demo import Trained, verdict
from attention_transfer.cli.digits import write_digits

FEW = 100


def write_few_digits(folder):
    write_digits(folder)
    for path in sorted(folder.rglob("*.png")):
        if int(path.stem) >= FEW:
            path.unlink()
    return FEW


@pytest.mark.slow
def test_the_demo_trains_all_three_and_tells_what_came_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(attention_transfer.cli.commands.demo, "write_digits", write_few_digits)
    with pytest.raises(SystemExit) as ending:
        main(["demo", "--epochs", "1", "--output", "here"])
    assert ending.value.code == 0
    printed = capsys.readouterr().out
    rows = re.findall(r"^  (teacher|student with(?:out)? AT) +([\d.]+) % +([\d.]+) M", printed, flags=re.MULTILINE)
    assert [(name, size) for name, _, size in rows] == [
        ("teacher", "11.2"),
        ("student with AT", "1.47"),
        ("student without AT", "1.47"),
    ]
    assert "With attention transfer the student got" in printed

    here = tmp_path / "here"
    assert len(list((here / "digits").rglob("*.png"))) == FEW
    picture = here / "attention.png"
    assert picture.stat().st_size < 200_000
    with Image.open(picture) as image:
        assert image.width > 500
    summaries = {
        name: json.loads((here / "logs" / f"{name}_summary.json").read_text())
        for name in ("teacher", "student-with-AT", "student-without-AT")
    }
    assert {summary["status"] for summary in summaries.values()} == {"finished"}
    for name, accuracy, _ in rows:
        summary = summaries[name.replace(" ", "-")]
        assert f"{100 * summary['test_results']['accuracy']:.2f}" == accuracy
    with_at, without = (summaries[name]["config"] for name in ("student-with-AT", "student-without-AT"))
    differences = {key for key in with_at if with_at[key] != without[key]}
    assert differences == {"teacher_model", "teacher_precision", "experiment_name"}


def test_the_demo_refuses_images_too_small_for_its_networks():
    done = warm.run("-m", "attention_transfer", "demo", "--image-size", "32")
    assert done.returncode == 2
    assert "image_size is 32" in done.stderr


def test_the_demo_says_how_to_get_scikit_learn(tmp_path):
    """In a process where scikit-learn cannot be imported, as where it is not installed."""
    code = (
        "import sys; sys.modules['sklearn.datasets'] = None\n"
        "from attention_transfer.cli.app import main; main(['demo', '--output', 'here'])"
    )
    done = warm.run("-c", code, cwd=tmp_path)
    assert done.returncode == 2
    assert 'pip install "attention-transfer[demo]"' in done.stderr


def test_the_digits_are_those_of_scikit_learn(tmp_path):
    from sklearn.datasets import load_digits

    assert write_digits(tmp_path) == 1797
    with Image.open(tmp_path / "0" / "0000.png") as image:
        assert (image.mode, image.size) == ("L", (64, 64))
        small = np.asarray(image.resize((8, 8), Image.Resampling.BOX)) / 255 * 16
    original = load_digits().images[0]
    assert np.corrcoef(small.ravel(), original.ravel())[0, 1] > 0.98


@pytest.mark.parametrize(
    ("right", "distance", "told"),
    [
        (52, 1e-3, "got 2 images more right, and its attention is 2.0 times nearer to the teacher's"),
        (49, 1e-3, "got 1 image fewer right, and its attention is 2.0 times nearer to the teacher's"),
        (50, 4e-3, "got as many images right, and its attention is 2.0 times farther from the teacher's"),
    ],
)
def test_the_verdict_says_what_came_out_also_where_attention_transfer_did_not_help(right, distance, told):
    import torch

    with_at = Trained("with", torch.nn.Identity(), 1.0, {"accuracy": right / 60, "samples": 60}, "fp32")
    without = Trained("without", torch.nn.Identity(), 1.0, {"accuracy": 50 / 60, "samples": 60}, "fp32")
    assert told in verdict(with_at, without, {"with": [distance], "without": [2e-3]})
