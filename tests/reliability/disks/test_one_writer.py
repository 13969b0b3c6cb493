"""What the library writes by itself is whole or absent, leaves no draft where the disk is full, and says why."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_disks import mounted, needs_mount

import attention_transfer
from attention_transfer.data.sources.base import Sample
from attention_transfer.data.sources.digest import samples_digest
from attention_transfer.errors import WriteError

pytestmark = pytest.mark.slow

PROGRAM = """
import json, logging, sys
from pathlib import Path
from attention_transfer.errors import WriteError
from attention_transfer.training.precision.choose import _remember
from attention_transfer.visualization import save_figure
from matplotlib.figure import Figure

said = []
logging.getLogger("attention_transfer").addHandler(type("Said", (logging.Handler,), {{
    "emit": lambda self, record: said.append(record.getMessage())}})())
disk = Path({disk!r})
figure = Figure()
figure.add_subplot().plot(range(100))
for written in ("precision.json", "attention.png"):
    (disk / written).write_text("{{}}")
with (disk / "ballast").open("wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
_remember(disk, "a network" * 1000, "fp32")
sentence = ""
try:
    save_figure(figure, disk / "attention.png")
except WriteError as error:
    sentence = str(error)
print(json.dumps({{"said": said, "sentence": sentence, "files": {{p.name: p.stat().st_size for p in disk.iterdir()}}}}))
"""


@needs_mount
def test_a_full_disk_keeps_the_files_of_before_and_no_draft(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'set -e; {mounted(disk, "size=64k")}; exec "$@"'
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", sys.executable, "-c", PROGRAM.format(disk=str(disk))],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert {name: size for name, size in told["files"].items() if name != "ballast"} == {
        "precision.json": 2,
        "attention.png": 2,
    }
    (line,) = told["said"]
    for word in (f"{disk}/precision.json", "make room there", "set cache_dir", "is timed again next time"):
        assert word in line
    for word in (f"{disk}/attention.png needs", "make room there, or set the output path to another folder", "before"):
        assert word in told["sentence"]


def test_a_figure_that_cannot_be_written_is_a_sentence_and_one_of_an_unknown_format_writes_nothing(tmp_path):
    from matplotlib.figure import Figure

    from attention_transfer.visualization import save_figure

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match=r"file/a\.png .*or set the output path to another folder"):
        save_figure(Figure(), tmp_path / "file" / "a.png")
    with pytest.raises(ValueError, match="xyz"):
        save_figure(Figure(), tmp_path / "new" / "a.xyz")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_module_writes_a_file_behind_the_one_writers_back():
    """`write_atomically` alone writes files at once; what is open for long (records, logs, events) is no such file."""
    root = Path(attention_transfer.__file__).parent
    forbidden = {"write_text", "write_bytes", "NamedTemporaryFile", "mkstemp"}
    found = {
        (path.name, node.attr)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in forbidden
    }
    assert found == {("records.py", "NamedTemporaryFile")}


def samples():
    return [
        Sample(path="/photos/a/1.png", relative="a/1.png", label=0, size=10, mtime_ns=7),
        Sample(path="/photos/b/\udcff.png", relative="b/\udcff.png", label=1, size=20, mtime_ns=8),
    ]


def sha(*lines):
    return hashlib.sha256(b"".join(lines)).hexdigest()


def test_the_digests_that_checkpoints_and_caches_keep_are_what_they_were_in_0_1():
    assert samples_digest(samples(), "size") == sha(b"a/1.png\x0010\n", b"b/\xff.png\x0020\n")
    assert samples_digest(samples(), "size and time") == sha(b"a/1.png\x0010 7\n", b"b/\xff.png\x0020 8\n")
    # made with version 0.1 (training.setup.data_digest_of, and data.identity.samples_digest)
    assert samples_digest(samples(), "size").startswith("a5c7ddbae6ea")
    assert samples_digest(samples(), "size and time").startswith("cfe29281f28c")


def test_a_run_keeps_the_digest_of_names_and_sizes_in_its_checkpoint(settings, tmp_path):
    from attention_transfer import prepare_dataloaders, train_at
    from attention_transfer.checkpoint import read_checkpoint

    train_at({**settings, "model": "CifarResNet-8", "precision": "fp32"})
    training = read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["training"]
    dataset = prepare_dataloaders(settings["data_dir"], num_workers=0, image_size=32)[0].dataset
    lines = [f"{sample.relative}\0{sample.size}\n".encode() for sample in dataset.source.samples]
    assert training["data_digest"] == sha(*lines)
