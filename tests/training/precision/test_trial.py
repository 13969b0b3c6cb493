"""A trial of two number formats: its budget, its verdict, and what it takes no time for.

A step of these tests takes the time that its clock says, so that none of them depends on the machine.
"""

from __future__ import annotations

import pytest

from attention_transfer.training.precision.trial import NotComparedError, Times, compare

pytestmark = pytest.mark.speed


class Machine:
    """A step that takes so many seconds an image, and the clock beside it."""

    def __init__(self, fp32, bf16, hiccups=()):
        self.seconds_an_image = {"fp32": fp32, "bf16": bf16}
        self.hiccups = dict(hiccups)
        self.now = 1000.0
        self.steps = []

    def step(self, precision, count):
        self.now += count * self.seconds_an_image[precision] * self.hiccups.get(len(self.steps), 1)
        self.steps.append((precision, count))

    def compare(self, size, steps):
        return compare(self.step, size, steps, lambda: self.now)

    @property
    def spent(self):
        return self.now - 1000.0


def test_timing_keeps_within_two_seconds():
    machine = Machine(0.005, 0.0045)
    with pytest.raises(NotComparedError, match=r"takes about 0\.5 s, and 2 s may be spent"):
        machine.compare(100, 100)
    assert machine.spent < 2.0
    assert [count for _, count in machine.steps[::2]] == [2, 2, 25, 100]


def test_timing_may_take_a_hundredth_of_the_run():
    machine = Machine(0.005, 0.0025)
    assert machine.compare(100, 700).winner == "bf16"
    assert 2.0 < machine.spent < 0.01 * 700 * 0.5


def test_a_long_run_is_no_reason_to_time_for_longer_than_it_takes_to_know():
    machine = Machine(0.005, 0.0025)
    machine.compare(100, 1_000_000)
    assert machine.spent == pytest.approx(100 * 0.0075 * 3 + 29 * 0.0075)  # one round warms up, two count


@pytest.mark.parametrize("times_as_long", [5, 50, 5000])
def test_a_processor_that_only_pretends_is_found_out_on_a_few_images(times_as_long):
    machine = Machine(0.005, 0.005 * times_as_long)
    with pytest.raises(
        NotComparedError, match=rf"on 2 images a step takes {times_as_long} times as long in bf16|no time"
    ):
        machine.compare(100, 10_000)
    assert {count for _, count in machine.steps} == {2}


def test_bf16_is_taken_where_it_is_at_least_15_percent_faster():
    assert Times(1.151, 1.0).winner == "bf16"
    assert Times(1.149, 1.0).winner == "fp32"


def test_the_fastest_of_several_rounds_counts_as_other_work_only_slows_steps_down():
    steps_before = 2 * 4  # two rounds of a few images, one of a quarter, one to warm up
    machine = Machine(0.002, 0.001, {steps_before: 3, steps_before + 3: 5})
    times = machine.compare(10, None)
    assert (times.fp32, times.bf16) == (pytest.approx(0.02), pytest.approx(0.01))


def test_at_most_seven_rounds_count_and_each_format_has_its_turn():
    machine = Machine(0.0001, 0.0001)
    machine.compare(10, None)
    assert [precision for precision, _ in machine.steps] == ["fp32", "bf16"] * (4 + 7)
    assert [count for _, count in machine.steps[::2]] == [2, 2, 2] + [10] * 8


def test_a_step_that_fails_is_told_with_its_number_format():
    def step(precision, count):
        if precision == "bf16":
            raise RuntimeError("float32\nalone")

    with pytest.raises(NotComparedError, match=r"a step in bf16 fails \(RuntimeError: float32 alone\)"):
        compare(step, 8, None)
