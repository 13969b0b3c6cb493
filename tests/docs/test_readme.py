"""What README and notebook show runs as it stands; paths are substituted, and what makes it long."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from support import warm

from attention_transfer import create_model
from attention_transfer.evaluation import count_multiply_adds

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def substituted(code: str, photos: Path, teacher: Path) -> str:
    quick = 'figure_freq=0, precision="fp32", teacher_precision="fp32", data_dir="photos"'
    code = code.replace('data_dir="photos"', quick)
    code = code.replace('"photos"', f'"{photos}", image_size=48, num_workers=1')
    code = code.replace('"teacher.pth"', f'"{teacher}"')
    return re.sub(r"epochs=\d+", "epochs=1", code)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a teacher of the digits, in which the README's lines are run."""
    folder = tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    torch.save(create_model("ResNet18", 10).state_dict(), folder / "teacher.pth")
    return folder


def run(arguments, folder):
    done = warm.run(*arguments, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_python_blocks_run_one_after_another(workshop, few_digits):
    """The five patterns that notebooks use: basic, with a teacher, custom loaders, load and evaluate, visualise."""
    code = [f"import sys; sys.path.insert(0, {str(ROOT)!r})"]
    code += [substituted(block, few_digits, workshop / "teacher.pth") for block in blocks("python")]
    script = workshop / "readme.py"
    script.write_text(
        "if __name__ == '__main__':\n" + "\n".join("    " + line for line in "\n".join(code).splitlines())
    )
    run([script], workshop)
    assert (workshop / "attention.png").exists()


@pytest.mark.slow
def test_the_commands_run_one_after_another(workshop, few_digits):
    commands = next(block for block in blocks("bash") if "attention-transfer evaluate" in block)
    settings = ["model: CifarResNet-8", "image_size: 16", "epochs: 1", "num_workers: 0", "figure_freq: 0"]
    (workshop / "run.yaml").write_text("\n".join([f"data_dir: {few_digits}", *settings]))
    small = "--image-size 16 --model CifarResNet-8 --num-workers 0 --figure-freq 0"
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "attention-transfer"
        text = " ".join(words[1:]).replace("--epochs 30", f"--epochs 1 {small}").replace("--epochs 40", "--epochs 2")
        text = text.replace("photos", str(few_digits / "3" if "visualize" in text else few_digits))
        run(["-m", "attention_transfer", *shlex.split(text)], workshop)
    assert (workshop / "checkpoints" / "ants_best.pth").exists()


def test_the_table_of_settings_is_the_one_that_the_code_has():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from configuration_table import table
    finally:
        sys.path.pop(0)
    assert table() in README, "run: python docs/configuration_table.py --write"


def test_the_table_of_networks_tells_their_true_sizes():
    rows = re.findall(r"^\| `([\w-]+)`.*\| ([\d.]+) M \| ([\d.]+) M \|$", README, flags=re.MULTILINE)
    assert len(rows) == 6
    for name, parameters, multiply_adds in rows:
        network = create_model(name, 10)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(float(parameters), rel=0.01), name
        counted = count_multiply_adds(network, torch.zeros(1, 3, 128, 128))
        assert counted / 1e6 == pytest.approx(float(multiply_adds), rel=0.01), name


def test_the_picture_is_there_and_small():
    picture = ROOT / "docs" / "demo.png"
    assert picture.stat().st_size < 200_000
    assert "docs/demo.png" in README


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples" / "attention_transfer.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub(r"epochs = \d+", "epochs = 1", cell.source)
        cell.source = cell.source.replace("digits.images, digits.target", "digits.images[:120], digits.target[:120]")
        quick = '"num_workers": 1, "figure_freq": 0, "precision": "fp32"'
        cell.source = cell.source.replace('"num_workers": 2', quick)
        cell.source = re.sub(r"image_size(\W+)64", r"image_size\g<1>48", cell.source)
    client = NotebookClient(
        notebook,
        timeout=500,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT / "examples")}},
    )
    monkeypatch.setenv("AT_EXAMPLE_FOLDER", str(tmp_path))
    client.execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert pictures, "the notebook draws no attention"
