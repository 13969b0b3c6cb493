"""The very batch script of the documentation, with SLURM's own commands replaced by ones that write down their call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "slurm" / "train.sbatch"
EPOCHS = 12


class Slurm:
    """Runs the script as a job of the name birds; `calls` are those of scontrol, over all runs."""

    def __init__(self, folder, data):
        self.folder, self._data, self._calls = folder, data, folder / "calls"
        self.commands = folder / "commands"
        self.commands.mkdir()
        self._calls.touch()
        self._command("scontrol", f'echo "$*" >> {self._calls}')
        self._command("attention-transfer", f'exec {sys.executable} -m attention_transfer "$@"')
        self.job_is("RUNNING")

    def _command(self, name, line):
        (self.commands / name).write_text(f"#!/bin/bash\n{line}\n")
        (self.commands / name).chmod(0o755)

    def job_is(self, state):
        """What squeue says of the job from here on."""
        self._command("squeue", f"echo {state}")

    def start(self, *words):
        return subprocess.Popen(
            [
                "bash", SCRIPT, "--data-dir", self._data, "--model", "CifarResNet-8", "--image-size", "32",
                "--num-workers", "1", "--device", "cpu", "--lr", "0.05", "--epochs", str(EPOCHS), *words,
            ],
            cwd=self.folder,
            env={
                **os.environ, "PATH": f"{self.commands}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
                "SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "birds",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def start_and_stop(self):
        """The exit code and the output of a run that gets a TERM, at the batch shell, after its first epoch."""
        job = self.start()
        while not (self.folder / "checkpoints" / "birds_last.pth").exists():
            assert job.poll() is None, job.communicate()
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        printed, said = job.communicate(timeout=120)
        return job.returncode, printed + said

    def calls(self):
        return self._calls.read_text().splitlines()

    def summary(self):
        return json.loads((self.folder / "logs" / "birds_summary.json").read_text())


@pytest.fixture
def slurm(tmp_path, few_digits):
    return Slurm(tmp_path, few_digits)


def test_a_preempted_job_is_saved_requeued_and_goes_on_to_its_end(slurm):
    code, told = slurm.start_and_stop()
    assert code == 143, told
    assert "birds: stopped" in told
    assert "Traceback" not in told
    assert slurm.calls() == ["requeue 4711"]
    assert slurm.summary()["status"] == "stopped"

    again = slurm.start()
    printed, said = again.communicate(timeout=300)
    assert again.returncode == 0, printed + said
    assert "birds: finished" in printed
    assert f"epoch 1/{EPOCHS}" not in printed
    assert slurm.calls() == ["requeue 4711"]
    assert slurm.summary()["status"] == "finished"
    log = (slurm.folder / "logs" / "birds.log").read_text()
    assert [log.count(f"epoch {epoch}/{EPOCHS}:") for epoch in range(1, EPOCHS + 1)] == [1] * EPOCHS


def test_a_job_that_is_cancelled_stops_and_stays_cancelled(slurm):
    slurm.job_is("COMPLETING")
    code, told = slurm.start_and_stop()
    assert code == 143, told
    assert slurm.calls() == []


def test_a_job_that_fails_is_not_put_back_into_the_queue(slurm):
    job = slurm.start("--alpha", "0.5")
    _, said = job.communicate(timeout=120)
    assert job.returncode == 2
    assert "there is no teacher to distil from" in said
    assert slurm.calls() == []


def test_a_launcher_that_ends_with_a_code_of_its_own_after_a_stop_is_requeued_too(slurm):
    slurm._command("attention-transfer", "trap 'sleep 0.3; exit 1' TERM; touch began; while true; do sleep 0.05; done")
    job = slurm.start()
    while not (slurm.folder / "began").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=30)
    assert job.returncode == 1
    assert slurm.calls() == ["requeue 4711"]


def test_tasks_of_a_job_array_have_experiments_of_their_own(slurm, monkeypatch):
    slurm._command("attention-transfer", 'echo "$*"')
    named = []
    for index in ("0", "1", None):
        if index is None:
            monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
        else:
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", index)
        printed, _ = slurm.start().communicate(timeout=30)
        words = printed.split()
        named.append(words[words.index("--experiment-name") + 1])
    assert named == ["birds-0", "birds-1", "birds"]
