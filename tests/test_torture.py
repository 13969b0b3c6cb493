"""A run that is killed again and again ends as one that was left alone; `make torture` does it a hundred times."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from benchmarks.torture import Child, chain, differences, outcome, photos_of
from benchmarks.torture_child import Phase


@pytest.fixture(scope="module")
def data(shared_folder, tmp_path_factory):
    return photos_of(shared_folder, tmp_path_factory.mktemp("torture-data"))


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """What the run comes to when nobody kills it."""
    folder = tmp_path_factory.mktemp("alone")
    assert Child(folder, data).finish() == 0, (folder / "output.txt").read_text()
    return outcome(folder)


def test_after_kills_in_every_phase_weights_history_and_scalars_are_the_same_to_the_bit(tmp_path, data, alone):
    killed = Counter[Phase]()
    assert chain(tmp_path / "run", data, 4, killed, random.Random(1)) >= 3
    assert killed.keys() - {Phase.STARTING}
    assert Child(tmp_path / "run", data).finish() == 0, (tmp_path / "run" / "output.txt").read_text()
    assert differences(alone, outcome(tmp_path / "run")) == []


@pytest.mark.parametrize("when", ["before:fsync:7", "after:fsync:9", "before:replace:3"])
def test_after_a_kill_around_a_system_call_of_a_save_it_goes_on(tmp_path, data, alone, when):
    child = Child(tmp_path / "run", data, when)
    assert child.finish() == -9, (tmp_path / "run" / "output.txt").read_text()
    assert Child(tmp_path / "run", data).finish() == 0
    assert differences(alone, outcome(tmp_path / "run")) == []


def test_the_comparison_sees_another_seed(tmp_path, data, alone):
    assert Child(tmp_path / "run", data, seed=1).finish() == 0
    assert differences(alone, outcome(tmp_path / "run")) == ["weights", "history", "scalars"]
