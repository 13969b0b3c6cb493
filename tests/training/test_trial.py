"""A trial of two number formats: its budget, its verdict, and what it takes no time for."""

from __future__ import annotations

import time

import pytest

from attention_transfer.training.precision.trial import NotComparedError, Times, compare


def steady(fp32, bf16):
    """A step that takes so many seconds an image."""
    return lambda precision, count: time.sleep(count * {"fp32": fp32, "bf16": bf16}[precision])


def test_timing_keeps_within_two_seconds_or_a_hundredth_of_the_run():
    began = time.perf_counter()
    with pytest.raises(NotComparedError, match=r"takes about 0\.5"):
        compare(steady(0.005, 0.0045), 100, 100)
    assert time.perf_counter() - began < 2.0
    assert compare(steady(0.005, 0.0025), 100, 700).winner == "bf16"


def test_a_processor_that_only_pretends_is_found_out_on_a_few_images():
    began = time.perf_counter()
    with pytest.raises(NotComparedError, match=r"on 2 images a step takes \d+ times as long in bf16"):
        compare(steady(0.005, 0.05), 100, 10_000)
    assert time.perf_counter() - began < 1.0


def test_bf16_is_taken_where_it_is_at_least_15_percent_faster():
    assert Times(1.151, 1.0).winner == "bf16"
    assert Times(1.149, 1.0).winner == "fp32"
    times = compare(steady(0.002, 0.001), 10, None)
    assert (times.fp32, times.bf16) == (pytest.approx(0.02, rel=0.3), pytest.approx(0.01, rel=0.3))
