"""Scripts under the start methods of macOS, Windows and Python 3.14: a forgotten guard is told, a guarded one runs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.speed]

HEAD = """
import multiprocessing, os
multiprocessing.set_start_method("{method}", force=True)
"""

AS_IN_PYTHON_3_14 = """
from multiprocessing import spawn
told = spawn.get_preparation_data
# there the server of workers imports the script, too
spawn.get_preparation_data = lambda name: {**told(name), "main_path": told(name).get("init_main_from_path")}
"""

README = """
from AT.main_new import create_at_config, train_at

config = create_at_config(
    data_dir={data!r}, model="CifarResNet-8", epochs=1, image_size=32, num_workers=1, device="cpu", precision="fp32",
    pixel_cache="off",     cache_dir="cache", save_dir="checkpoints", log_dir="logs", experiment_name="run",
)
results = train_at(config)
print("finished", results["status"])
"""

OWN_LOOP = """
from attention_transfer import prepare_dataloaders

train, _, _ = prepare_dataloaders({data!r}, batch_size=8, num_workers=1, image_size=32)
for images, labels in train:
    break
print("finished", len(images))
"""


def run(folder, program):
    script = folder / "script.py"
    script.write_text(program)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, script], check=False, capture_output=True, text=True, cwd=folder, env=environment, timeout=300
    )


@pytest.mark.parametrize("method", ["spawn", "forkserver", "forkserver of 3.14"])
def test_a_script_without_its_guard_is_told_so_in_a_few_lines(tmp_path, eighty_digits, method):
    head = HEAD.format(method=method.partition(" ")[0]) + (AS_IN_PYTHON_3_14 if "3.14" in method else "")
    ended = run(tmp_path, head + README.format(data=str(eighty_digits)))
    said = ended.stderr.strip().splitlines()
    assert ended.returncode == 1
    assert "finished" not in ended.stdout
    assert 'put what the script does under `if __name__ == "__main__":`' in said[-1]
    assert "UnguardedScriptError" in said[-1]
    assert len(said) <= 12, ended.stderr
    assert "memory" not in ended.stderr
    assert not list(tmp_path.glob("checkpoints/*.pth"))


def test_a_loop_of_ones_own_without_the_guard_is_told_so_too(tmp_path, eighty_digits):
    ended = run(tmp_path, HEAD.format(method="spawn") + OWN_LOOP.format(data=str(eighty_digits)))
    assert ended.returncode == 1
    told = [
        line for line in ended.stderr.splitlines() if line.startswith("attention-transfer: put what the script does")
    ]
    assert len(told) == 1
    assert "bootstrapping" not in ended.stderr


def test_a_script_with_its_guard_trains(tmp_path, eighty_digits):
    guarded = HEAD.format(method="spawn") + README.format(data=str(eighty_digits))
    ended = run(tmp_path, 'if __name__ == "__main__":\n' + textwrap.indent(guarded, "    "))
    assert ended.returncode == 0, ended.stderr
    assert "finished finished" in ended.stdout
