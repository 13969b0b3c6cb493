"""A run that is killed again and again ends as one that was left alone; `make torture` does it a hundred times."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter

import pytest
from support.warm import Program

from attention_transfer.checkpoint import read_checkpoint
from benchmarks.torture import AIMED, FULL_SIZE, Child, chain, differences, outcome, shortfalls
from benchmarks.torture_child import Phase

pytestmark = [pytest.mark.speed, pytest.mark.slow]

SHORT = {"epochs": 2}
SAVES_EACH_BATCH = {**SHORT, "save_minutes": 1e-9}


def warm_start(words, log):
    return Program(*words, output=log, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def begin(folder, data, *extra, **changes):
    return Child(folder, data, *extra, start=warm_start, **{**SHORT, **changes})


def end_of(folder, data, **changes):
    """What a run comes to when it is left alone from here on."""
    assert begin(folder, data, **changes).finish() == 0, (folder / "output.txt").read_text()
    return outcome(folder)


@pytest.fixture(scope="module")
def alone(few_digits, tmp_path_factory):
    """What the run comes to when nobody kills it."""
    return end_of(tmp_path_factory.mktemp("alone"), few_digits)


def test_after_a_kill_in_each_phase_weights_history_and_scalars_are_the_same_to_the_bit(tmp_path, few_digits, alone):
    folder = tmp_path / "chain"
    places = ("within:pixels:1", "within:filling:2", "within:epoch:2", "amid:write:1")
    for where, phase in zip(places, AIMED, strict=True):
        child = begin(folder, few_digits, where)
        assert child.finish() == -signal.SIGKILL, (where, (folder / "output.txt").read_text())
        assert child.phase() == phase
    assert differences(alone, end_of(folder, few_digits)) == []


@pytest.mark.slow
def test_a_kill_from_outside_at_whatever_moment_leaves_a_run_that_ends_the_same(tmp_path, few_digits, alone):
    """Which phase it hits depends on the machine; that `make torture` hits all of them is its own to count."""
    folder = tmp_path / "chain"
    killed = chain(folder, few_digits, 1, Counter(dict.fromkeys(AIMED[:2], 1)), random.Random(0), **SHORT)
    assert killed.total() <= 1
    assert differences(alone, end_of(folder, few_digits)) == []


@pytest.mark.parametrize(
    ("function", "kills"),
    [
        # around the second checkpoint of each start
        ("write", [("before", 3, "draft"), ("amid", 3, "draft"), ("after", 3, "draft")]),
        ("fsync", [("before", 3, "draft"), ("after", 3, "draft")]),
        ("replace", [("before", 2, "draft"), ("after", 2, "new")]),
        ("fsync", [("before", 4, "new"), ("after", 4, "new")]),
    ],
    ids=["write", "fsync-of-the-draft", "replace", "fsync-of-the-folder"],
)
def test_after_kills_around_a_system_call_of_a_checkpoint_it_goes_on(tmp_path, few_digits, alone, function, kills):
    folder, step = tmp_path / "run", 0
    for when, count, left in kills:
        child = begin(folder, few_digits, f"{when}:{function}:{count}", **SAVES_EACH_BATCH)
        assert child.finish() == -signal.SIGKILL, (folder / "output.txt").read_text()
        # until its rename the one from before is there, whole, and a draft beside it; from then on the new one
        step += 2 if left == "new" else 1
        assert read_checkpoint(folder / "checkpoints" / "run_last.pth")["training"]["step"] == step
        drafts = list((folder / "checkpoints").glob(".run_last.pth.*.at-draft"))
        assert len(drafts) == (left == "draft")
    assert differences(alone, end_of(folder, few_digits)) == []
    assert not list((folder / "checkpoints").glob(".*.at-draft"))


def test_the_comparison_sees_another_seed(tmp_path, few_digits, alone):
    other = end_of(tmp_path / "run", few_digits, seed=1)
    assert differences(alone, other) == ["weights", "history", "scalars"]


def test_a_run_of_full_size_lacks_nothing_only_with_enough_kills_in_each_phase():
    enough = Counter(dict.fromkeys(AIMED, FULL_SIZE // len(AIMED)))
    assert shortfalls(enough, FULL_SIZE) == []
    few = enough + Counter({Phase.EPOCH: 11}) - Counter({Phase.FILLING: 11})
    assert shortfalls(few, FULL_SIZE) == ["14 kills in filling, fewer than 15"]
    assert shortfalls(Counter({Phase.EPOCH: 20}), 20) == []
    assert shortfalls(Counter({Phase.EPOCH: 20}), 21) == ["20 kills in chains of 5 to 10, and 21 were asked for"]
