"""A process that trains for long, or again and again, holds on to nothing; and the soak would notice if it did."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
from support import warm

from benchmarks.measuring.memory_use import MB, Peak, Use, use_of
from benchmarks.soak import judge, slope

pytestmark = pytest.mark.slow

WARM = 24
"""Epochs until workers have touched all the pages they ever will: of 60 epochs watched, memory rose by 14 MB in the
first 22, in the two workers for training alone, and by 3 MB in the 38 that followed."""
MOST_MB = 0.25
"""An epoch, or a run, adds 0.05 at most here; now and then one adds 1.5, as garbage comes and goes."""


IN_A_FRESH_PROCESS = """
import json, sys
from pathlib import Path
from benchmarks.measuring.memory_use import use_of
from benchmarks.soak import long_run, many_runs, without_figures

folder, before = Path(sys.argv[1]), use_of()
with without_figures():
    uses = {call}
print(json.dumps([before, *uses]))
"""


def uses_of(call: str, folder: Path) -> list[Use]:
    """The use before and after each epoch (run), in a process that has not a whole suite's heap to fork and to fill."""
    done = warm.run("-c", IN_A_FRESH_PROCESS.format(call=call), folder)
    assert done.returncode == 0, done.stderr
    return [Use(*use) for use in json.loads(done.stdout.splitlines()[-1])]


def usual_step(uses: Sequence[Use]) -> float:
    """MB that an epoch (a run) usually adds: the median, which a single jump does not move."""
    return statistics.median((after.anonymous - before.anonymous) / MB for before, after in pairwise(uses))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process below this one, until the test is over."""
    with subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"], stdout=-1
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


def test_epochs_leave_no_open_files_no_workers_and_no_memory(tmp_path):
    _, *uses = uses_of("long_run(folder, 36)", tmp_path)
    settled = uses[WARM:]
    assert len(uses) == 36
    assert {use.files for use in settled} == {settled[0].files}
    assert {use.children for use in settled} == {settled[0].children}
    assert settled[0].children >= 4  # two workers for each of train and val
    assert usual_step(settled) < MOST_MB


def test_runs_in_one_process_leave_no_open_files_no_workers_and_no_memory(tmp_path):
    before, *uses = uses_of("many_runs(folder, 4, epochs=1)", tmp_path)
    assert {use.children for use in uses} == {before.children}
    assert {use.files for use in uses[1:]} == {uses[1].files}
    assert usual_step(uses[1:]) < MOST_MB


@pytest.mark.parametrize(
    ("uses", "passes"),
    [
        ([Use(10**8, 20, 4)] * 10, True),
        ([Use(10**8 + 40_000 * i, 20, 4) for i in range(10)], True),
        ([Use(10**8 + 60_000 * i, 20, 4) for i in range(10)], False),
        ([Use(10**8, 20 + (i > 6), 4) for i in range(10)], False),
        ([Use(10**8, 20, 4 - (i > 6)) for i in range(10)], False),
        ([Use(10**7, 10, 0)] * 2 + [Use(10**8, 20, 4)] * 8, True),
    ],
)
def test_the_soak_fails_where_memory_rises_or_files_or_children_change_after_warming_up(uses, passes):
    assert judge("epochs", "an epoch", uses, warm=2) is passes


def test_the_slope_is_in_megabytes_from_one_look_to_the_next():
    assert slope([Use(3_000_000 * i, 0, 0) for i in range(4)]) == pytest.approx(3.0)


def test_memory_files_and_children_of_the_processes_below_count_too(sleeper):
    alone = use_of(psutil.Process(sleeper.pid))
    with tempfile.TemporaryFile():
        all_or_raise = use_of()
    assert alone.children == 0
    assert all_or_raise.children >= 1
    assert all_or_raise.anonymous > alone.anonymous > 0
    assert all_or_raise.files > use_of().files


def test_a_peak_is_seen_after_it_has_passed():
    with Peak(psutil.Process(), interval=0.01) as peak:
        before = use_of().anonymous
        content = np.ones(200_000_000, np.uint8)
        looks = peak.looks
        while peak.looks < looks + 2:
            time.sleep(0.01)
        del content
    assert peak.anonymous > before + 150 * MB
    assert use_of().anonymous < before + 100 * MB
