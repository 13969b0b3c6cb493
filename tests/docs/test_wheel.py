"""The wheel, built and installed in an environment of its own, is the library and nothing else."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, **settings):
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_works_in_a_clean_environment(tmp_path):
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name.split("-")[0] for name in names} == {"attention_transfer"}

    run(sys.executable, "-m", "venv", str(tmp_path / "clean"))
    python = tmp_path / "clean" / "bin" / "python"
    run(str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel))
    # The dependencies are gigabytes: they are borrowed from this environment, without its editable install, since
    # .pth files count in an environment's own site-packages alone.
    borrowed = {**os.environ, "PYTHONPATH": os.pathsep.join(site.getsitepackages())}
    code = "import attention_transfer; print(attention_transfer.__file__); attention_transfer.train_at"
    assert str(tmp_path / "clean") in run(str(python), "-c", code, cwd=tmp_path, env=borrowed)
    told = run(str(tmp_path / "clean" / "bin" / "attention-transfer"), "info", cwd=tmp_path, env=borrowed)
    assert "MultiBranchNet" in told
