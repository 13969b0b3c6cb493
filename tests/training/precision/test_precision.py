"""Which number format 'auto' comes to on a CPU; as a script, what the processes of a test do.

The processor and the times are handed in, so that no test depends on how fast the machine is; one real trial is made.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ranks
from torch import nn

from attention_transfer import create_model
from attention_transfer.config import resolve_config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import AcceleratedRuntime
from attention_transfer.errors import ConfigError
from attention_transfer.logs import log_once
from attention_transfer.seeding import random_state
from attention_transfer.teacher.build import make_teacher
from attention_transfer.training.criterion import Criterion
from attention_transfer.training.precision.bf16 import cpu_capabilities, has_bf16
from attention_transfer.training.precision.choose import (
    batch_shape,
    choose_precision,
    choose_teacher_precision,
    processor,
)
from attention_transfer.training.precision.trial import NotComparedError, Times

AUTO = resolve_config({"device": "cpu"})
SHAPE = (8, 3, 32, 32)
OTHER = {"fp32": "bf16", "bf16": "fp32"}

WITH_BF16 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": True, "amx_bf16": False}
WITHOUT_BF16 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}
FASTER, SLOWER = Times(0.25, 0.125), Times(0.125, 6.25)
"""What bf16 is on one processor and on another: twice as fast, and fifty times as slow."""


def taking(times):
    """A comparison that comes to these times; its steps are made."""

    def compare(step, size, steps):
        for precision in ("fp32", "bf16"):
            try:
                step(precision, size)
            except Exception as error:
                raise NotComparedError(f"a step in {precision} fails ({error})") from error
        return times

    return compare


FASTER_HERE = taking(FASTER)


def never(step, size, steps):
    """A comparison that must not be made."""
    raise AssertionError("it was timed")


@pytest.fixture(autouse=True)
def nothing_is_said():
    log_once.cache_clear()


class Small(nn.Module):
    """A network of a user's: no card, batch normalisation, and it draws from every generator."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = x + random.random() + np.random.rand()
        return self.head(self.dropout(self.body(x).mean((2, 3))))


class Locked(Small):
    """It cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class OneOfAKind(Small):
    """Its copy is itself."""

    def __deepcopy__(self, memo):
        return self


class Float32Alone(Small):
    """It raises in another number format."""

    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("float32 alone")
        return super().forward(x)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "attention_transfer")
    return lambda: [record.getMessage() for record in caplog.records]


def channels_last(name="CifarResNet-8"):
    torch.manual_seed(0)
    return create_model(name, 10).to(memory_format=torch.channels_last)


def runtime():
    here = AcceleratedRuntime(AUTO)
    here.memory_format = torch.channels_last
    return here


def choose(
    cache_dir, student, teacher=None, shape=SHAPE, steps=None, config=AUTO, *,
    capabilities=WITH_BF16, comparison=FASTER_HERE,
):  # fmt: skip
    return choose_precision(
        config, runtime(), student, teacher, shape, steps, cache_dir, capabilities=capabilities, comparison=comparison
    )


def choose_of_teacher(cache_dir, teacher, config=AUTO, *, capabilities=WITH_BF16, comparison=FASTER_HERE):
    return choose_teacher_precision(
        config, runtime(), teacher, SHAPE, cache_dir, capabilities=capabilities, comparison=comparison
    )


def remembered(cache_dir):
    return json.loads((cache_dir / "precision.json").read_text())


def flip(cache_dir):
    content = remembered(cache_dir)
    for entry in content.values():
        entry["precision"] = OTHER[entry["precision"]]
    (cache_dir / "precision.json").write_text(json.dumps(content))


def portrait(*networks):
    """Everything of some networks and of the random generators that choosing could disturb."""
    of_networks = [
        {
            "state": {key: value.clone() for key, value in network.state_dict().items()},
            "grads": [None if p.grad is None else p.grad.clone() for p in network.parameters()],
            "modes": [module.training for module in network.modules()],
            "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()],
            "strides": [value.stride() for value in network.state_dict().values()],
        }
        for network in networks
    ]
    return copy.deepcopy((of_networks, random_state()))


def assert_same(one, other):
    """Equal bit for bit, all the way down."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        assert_same(list(one.values()), list(other.values()))
    elif isinstance(one, list | tuple):
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other


@pytest.mark.parametrize(
    ("capabilities", "answer"),
    [
        (WITHOUT_BF16, False),
        (WITH_BF16, True),
        ({**WITHOUT_BF16, "amx_bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": False, "sve_bf16": False}, False),
        ({"architecture": "arm64", "neon": True, "bf16": True, "sve_bf16": False}, True),
        ({"architecture": "arm64", "neon": True, "bf16": False, "sve_bf16": True}, True),
        ({}, None),  # a torch that tells nothing
        ({"architecture": "x86_64"}, None),  # a processor that torch could not read
        ({"architecture": "ppc64", "bf16": False}, None),
        ({"architecture": "arm64", "avx512_bf16": False}, None),
    ],
)
def test_a_processors_flags_say_whether_it_has_bf16_or_nothing(capabilities, answer):
    assert has_bf16(capabilities) is answer


def test_this_processor_is_asked_through_torch():
    assert cpu_capabilities() == (torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {})


def test_a_processor_without_bf16_needs_no_trial_and_says_so_once_for_student_and_teacher(tmp_path, lines):
    misses = {"capabilities": WITHOUT_BF16, "comparison": never}
    random.seed(3)
    student, teacher = Small(), Small()
    before = portrait(student, teacher)
    assert choose(tmp_path, student, teacher, **misses) == "fp32"
    assert choose_of_teacher(tmp_path, teacher, **misses) == "fp32"
    assert lines() == ["precision: fp32, as this processor has no instructions for bf16"]
    assert_same(portrait(student, teacher), before)
    assert not list(tmp_path.iterdir())


def test_a_processor_without_bf16_does_not_go_by_what_another_found(tmp_path):
    assert choose(tmp_path, channels_last()) == "bf16"
    assert choose(tmp_path, channels_last(), capabilities=WITHOUT_BF16, comparison=never) == "fp32"


@pytest.mark.parametrize("capabilities", [WITH_BF16, {}, {"architecture": "riscv64"}])
@pytest.mark.parametrize(("times", "winner"), [(FASTER, "bf16"), (SLOWER, "fp32")])
def test_with_bf16_or_where_nobody_can_tell_the_faster_of_both_is_taken(tmp_path, capabilities, times, winner):
    misses = {"capabilities": capabilities, "comparison": taking(times)}
    assert choose(tmp_path, channels_last(), **misses) == winner
    assert choose_of_teacher(tmp_path, channels_last(), **misses) == winner
    assert [entry["precision"] for entry in remembered(tmp_path).values()] == [winner, winner]


@pytest.mark.speed
def test_a_real_trial_on_this_processor_comes_to_the_faster_of_both_or_to_fp32(tmp_path, lines):
    """What it comes to depends on processor and load; that it is told and kept as it was measured does not."""
    chosen = choose_precision(AUTO, runtime(), channels_last(), None, SHAPE, None, tmp_path)
    (line,) = lines()
    if (tmp_path / "precision.json").exists():
        ((_, entry),) = remembered(tmp_path).items()
        assert chosen == entry["precision"] == Times(entry["fp32"], entry["bf16"]).winner
        assert f" in {chosen}: 8 images take" in line
    else:
        assert chosen == "fp32"
        assert "no instructions for bf16" in line or "no time to compare" in line or "times as long in bf16" in line


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


@pytest.mark.parametrize("make", [channels_last, Small])
def test_choosing_leaves_networks_and_random_generators_as_they_were(tmp_path, make):
    student, teacher = make(), make()
    student(torch.rand(2, 3, 32, 32)).sum().backward()
    teacher.eval()
    next(student.children()).eval()
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    before = portrait(student, teacher)
    choose(tmp_path, student, teacher)
    choose_of_teacher(tmp_path, teacher)
    assert len(remembered(tmp_path)) == 2
    assert_same(portrait(student, teacher), before)


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


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (Locked, "Locked cannot be copied"),
        (OneOfAKind, "a copy of OneOfAKind shares its weights"),
        (Float32Alone, "a step in bf16 fails (float32 alone)"),
    ],
)
def test_a_network_that_cannot_be_timed_trains_in_fp32_and_a_line_says_why(tmp_path, lines, student, words):
    torch.manual_seed(0)
    network = student()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert choose(tmp_path, network) == "fp32"
    assert words in lines()[-1]
    assert_same(dict(network.state_dict()), before)
    assert not list(tmp_path.iterdir())


def test_settings_that_make_no_step_are_left_for_training_to_refuse(tmp_path, lines):
    config = AUTO.model_copy(update={"layers": ("nowhere",)})
    assert choose(tmp_path, channels_last(), channels_last(), config=config) == "fp32"
    assert "nowhere" in lines()[-1]


def test_a_batch_of_one_image_can_be_timed(tmp_path):
    assert choose(tmp_path, channels_last(), shape=(1, 3, 32, 32)) == "bf16"
    assert len(remembered(tmp_path)) == 1


def test_what_a_step_says_is_said_by_the_run_alone(tmp_path, lines):
    student, teacher = Small(), channels_last()
    choose(tmp_path, student, teacher, shape=(1, 3, 32, 32))
    assert not any("stages of Small" in line or "single image" in line for line in lines())
    criterion = Criterion(AUTO, make_teacher(teacher, AUTO, runtime()), runtime())
    criterion(student, Batch(torch.rand(2, 3, 32, 32), torch.arange(2)))
    assert sum("stages of Small" in line for line in lines()) == 1


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


def test_a_format_that_is_asked_for_is_not_timed(tmp_path, lines):
    for precision in ("fp32", "bf16"):
        config = resolve_config({"precision": precision, "teacher_precision": precision})
        assert choose(tmp_path, channels_last(), config=config, comparison=never) == precision
        assert choose_of_teacher(tmp_path, channels_last(), config, comparison=never) == precision
    assert not lines()
    assert not list(tmp_path.iterdir())


def test_fp16_on_a_cpu_is_refused(tmp_path):
    config = resolve_config({"precision": "fp16", "device": "cpu"})
    with pytest.raises(ConfigError, match="fp16"):
        AcceleratedRuntime(config)
    with pytest.raises(ConfigError, match="fp16"):
        choose(tmp_path, channels_last(), config=config)


def test_the_shape_of_a_batch_is_what_one_process_gets():
    config = resolve_config({"batch_size": 10, "image_size": 64})
    pairs = [(torch.rand(7, 1, 16, 24), torch.zeros(7))]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(9, 3, 8, 8)), batch_size=5)
    assert batch_shape(config, iter([]), None, 1) == (10, 3, 64, 64)
    assert batch_shape(config, iter([]), torch.rand(4, 3, 32, 48), 4) == (3, 3, 32, 48)
    assert batch_shape(config, pairs, None, 2) == (4, 1, 16, 24)
    assert batch_shape(config, loader, torch.rand(4, 3, 8, 8), 1) == (5, 3, 8, 8)


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
