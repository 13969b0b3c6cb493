"""What 'auto' came to is kept in a file, by what was timed; as a script, what the processes of a test do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from support import ranks
from support.choosing import (
    AUTO,
    FASTER,
    OTHER,
    SHAPE,
    WITH_BF16,
    WITHOUT_BF16,
    Locked,
    channels_last,
    choose,
    choose_of_teacher,
    flip,
    never,
    remembered,
    taking,
)

from attention_transfer.distributed import AcceleratedRuntime
from attention_transfer.training.precision.choose import choose_precision, processor
from attention_transfer.training.precision.trial import NotComparedError

pytestmark = pytest.mark.speed


def test_auto_tells_the_times_of_both_formats_in_one_line_and_remembers_them(tmp_path, lines):
    chosen = choose(tmp_path / "cache", channels_last())
    ((key, entry),) = remembered(tmp_path / "cache").items()
    assert entry == {"precision": chosen, "fp32": FASTER.fp32, "bf16": FASTER.bf16}
    assert lines() == [
        "precision: training without a teacher in bf16: 8 images take 0.25 s in fp32 and 0.125 s in bf16"
    ]
    for word in ("CifarResNet-8", "8x3x32x32", processor(), f"{torch.get_num_threads()} threads", torch.__version__):
        assert word in key


def test_the_second_time_the_file_answers_and_nothing_is_timed(tmp_path, lines):
    first = choose(tmp_path, channels_last())
    flip(tmp_path)
    before = (tmp_path / "precision.json").read_bytes()
    assert choose(tmp_path, channels_last(), comparison=never) == OTHER[first]
    assert (tmp_path / "precision.json").read_bytes() == before
    assert "as remembered in" in lines()[-1]


def test_another_batch_network_teacher_or_purpose_is_timed_for_itself(tmp_path):
    teacher = channels_last()
    choose(tmp_path, channels_last())
    choose(tmp_path, channels_last(), shape=(4, 3, 32, 32))
    choose(tmp_path, channels_last(), shape=(8, 3, 16, 16))
    choose(tmp_path, channels_last("CifarResNet-14"))
    choose(tmp_path, channels_last(), teacher)
    choose_of_teacher(tmp_path, teacher)
    assert len(remembered(tmp_path)) == 6


def test_a_teachers_answers_have_a_format_of_their_own_which_is_remembered(tmp_path, lines):
    first = choose_of_teacher(tmp_path, channels_last())
    assert "a teacher's answers in " + first in lines()[-1]
    flip(tmp_path)
    assert choose_of_teacher(tmp_path, channels_last(), comparison=never) == OTHER[first]


def no_time(step, size, steps):
    raise NotComparedError("no time to compare it with bf16")


def test_where_a_run_is_too_short_to_compare_it_is_fp32_and_nothing_is_remembered(tmp_path, lines):
    assert choose(tmp_path, channels_last(), comparison=no_time) == "fp32"
    assert lines() == ["precision: training without a teacher in fp32: no time to compare it with bf16"]
    assert not (tmp_path / "precision.json").exists()


def test_a_teacher_that_is_too_slow_to_compare_is_remembered_as_fp32(tmp_path):
    """Else the name of what is kept of its answers would depend on how busy the machine was."""
    assert choose_of_teacher(tmp_path, channels_last(), comparison=no_time) == "fp32"
    assert choose_of_teacher(tmp_path, channels_last(), comparison=never) == "fp32"
    assert [entry["precision"] for entry in remembered(tmp_path).values()] == ["fp32"]


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\udcff"])
def test_a_damaged_file_is_ignored_with_a_line_and_written_anew(tmp_path, lines, content):
    (tmp_path / "precision.json").write_bytes(content.encode(errors="surrogateescape"))
    chosen = choose(tmp_path, channels_last())
    assert [entry["precision"] for entry in remembered(tmp_path).values()] == [chosen]
    assert sum("precision.json cannot be read and is ignored" in line for line in lines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["precision.json"]


def test_an_entry_that_is_no_answer_is_timed_again(tmp_path):
    choose(tmp_path, channels_last())
    key = next(iter(remembered(tmp_path)))
    (tmp_path / "precision.json").write_text(json.dumps({key: {"precision": "fp8"}, "another": 1}))
    chosen = choose(tmp_path, channels_last())
    assert remembered(tmp_path)[key]["precision"] == chosen
    assert remembered(tmp_path)["another"] == 1


def test_a_folder_that_cannot_be_written_is_a_line(tmp_path, lines):
    (tmp_path / "file").write_text("")
    assert choose(tmp_path / "file" / "cache", channels_last()) == "bf16"
    assert "cannot be written" in lines()[-1]


def test_two_processes_take_what_the_main_one_found(tmp_path):
    ranks.run(2, __file__, tmp_path)
    main, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert main == second
    assert main == {"timed": "bf16", "flipped": "fp32", "failed": "fp32", "without": "fp32"}
    assert not (tmp_path / "cache-1").exists()


def choose_in_processes(folder):
    """Each process has a folder and a processor of its own; what the main one's say holds for both."""
    here = AcceleratedRuntime(AUTO)
    cache_dir = folder / f"cache-{here.rank}"

    def chosen(student, comparison, capabilities):
        return choose_precision(
            AUTO, here, student, None, SHAPE, None, cache_dir, capabilities=capabilities, comparison=comparison
        )

    mine, others = (WITH_BF16, WITHOUT_BF16) if here.is_main else (WITHOUT_BF16, WITH_BF16)
    comparison = taking(FASTER) if here.is_main else never
    told = {"timed": chosen(channels_last(), comparison, mine)}
    if here.is_main:
        flip(cache_dir)
    told["flipped"] = chosen(channels_last(), never, mine)
    told["failed"] = chosen(Locked(), never, mine)
    told["without"] = chosen(channels_last("CifarResNet-14"), never, others)
    (folder / f"{here.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    choose_in_processes(Path(sys.argv[1]))
