"""The very batch script of the documentation, with SLURM's own commands replaced by ones that write down their call."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.programs import BEFORE_IT_HANGS

pytestmark = [pytest.mark.speed, pytest.mark.slow]

SCRIPT = Path(__file__).parents[3] / "docs" / "slurm" / "train.sbatch"


class Slurm:
    """Runs the script as a job of the name birds; `calls` are those of scontrol, over all runs."""

    def __init__(self, folder, data):
        self.folder, self._data, self._calls = folder, data, folder / "calls"
        self.epochs = 10_000
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

    def start(self):
        return subprocess.Popen(
            [
                "bash", SCRIPT, "--data-dir", self._data, "--model", "CifarResNet-8", "--image-size", "16",
                "--num-workers", "1", "--device", "cpu", "--lr", "0.05", "--precision", "fp32", "--figure-freq", "0",
                "--epochs", str(self.epochs),
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

    def start_and_stop(self, sign):
        """The exit code and the output of a job that gets a TERM, at the batch shell, once a file is there."""
        job = self.start()
        while not sign.exists():
            assert job.poll() is None, job.communicate()
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        printed, said = job.communicate(timeout=BEFORE_IT_HANGS)
        return job.returncode, printed + said

    def program_is(self, line):
        """A program takes the place of the training, where the job's script alone is tested."""
        self._command("attention-transfer", line)

    def calls(self):
        return self._calls.read_text().splitlines()

    def summary(self):
        return json.loads((self.folder / "logs" / "birds_summary.json").read_text())


@pytest.fixture
def slurm(tmp_path, few_digits):
    return Slurm(tmp_path, few_digits)


def test_a_preempted_job_is_saved_requeued_and_goes_on_to_its_end(slurm):
    code, told = slurm.start_and_stop(slurm.folder / "checkpoints" / "birds_last.pth")
    assert code == 143, told
    assert "birds: stopped" in told
    assert "Traceback" not in told
    assert slurm.calls() == ["requeue 4711"]
    assert slurm.summary()["status"] == "stopped"

    slurm.epochs = len(slurm.summary()["history"]) + 2
    again = slurm.start()
    printed, said = again.communicate(timeout=300)
    assert again.returncode == 0, printed + said
    assert "birds: finished" in printed
    assert "epoch 1/" not in printed
    assert slurm.calls() == ["requeue 4711"]
    assert slurm.summary()["status"] == "finished"
    log = (slurm.folder / "logs" / "birds.log").read_text()
    numbers = range(1, slurm.epochs + 1)
    assert [len(re.findall(rf"epoch {number}/\d+:", log)) for number in numbers] == [1] * slurm.epochs


STOPPED = "trap 'exit 143' TERM; touch began; while true; do sleep 0.05; done"


def test_a_job_that_is_cancelled_stops_and_stays_cancelled(slurm):
    slurm.job_is("COMPLETING")
    slurm.program_is(STOPPED)
    code, told = slurm.start_and_stop(slurm.folder / "began")
    assert code == 143, told
    assert slurm.calls() == []


def test_a_job_that_fails_is_not_put_back_into_the_queue(slurm):
    slurm.program_is("echo 'error: there is no teacher' >&2; exit 2")
    job = slurm.start()
    _, said = job.communicate(timeout=BEFORE_IT_HANGS)
    assert job.returncode == 2
    assert "there is no teacher" in said
    assert slurm.calls() == []


def test_a_launcher_that_ends_with_a_code_of_its_own_after_a_stop_is_requeued_too(slurm):
    slurm.program_is(STOPPED.replace("exit 143", "sleep 0.3; exit 1"))
    code, told = slurm.start_and_stop(slurm.folder / "began")
    assert code == 1, told
    assert slurm.calls() == ["requeue 4711"]


@pytest.mark.parametrize("number", range(3, 9))
def test_a_stop_before_any_command_of_the_job_is_handed_on_and_the_job_requeued(slurm, monkeypatch, number):
    """BASH_ENV has the shell send itself a TERM before a command, from that after its `trap` to its `wait`."""
    slurm.program_is(STOPPED)
    environment = slurm.folder / "environment"
    environment.write_text(
        f"commands=0; before() {{ ((++commands == {number})) && kill -TERM $$ && touch stopped; :; }}\n"
        "[[ ${0##*/} == train.sbatch ]] && trap before DEBUG\n"
    )
    monkeypatch.setenv("BASH_ENV", str(environment))
    job = slurm.start()
    printed, said = job.communicate(timeout=BEFORE_IT_HANGS)
    assert job.returncode == 143, printed + said
    assert (slurm.folder / "stopped").exists()
    assert slurm.calls() == ["requeue 4711"]


def test_tasks_of_a_job_array_have_experiments_of_their_own(slurm, monkeypatch):
    slurm.program_is('echo "$*"')
    named = []
    for index in ("0", "1", None):
        if index is None:
            monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
        else:
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", index)
        printed, _ = slurm.start().communicate(timeout=BEFORE_IT_HANGS)
        words = printed.split()
        named.append(words[words.index("--experiment-name") + 1])
    assert named == ["birds-0", "birds-1", "birds"]
