"""Which number format 'auto' comes to on a CPU, by processor, times and network; one real trial is made."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from support.choosing import (
    AUTO,
    FASTER,
    SHAPE,
    SLOWER,
    WITH_BF16,
    WITHOUT_BF16,
    Locked,
    Small,
    channels_last,
    choose,
    choose_of_teacher,
    never,
    remembered,
    runtime,
    taking,
)

from attention_transfer.config import resolve_config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import AcceleratedRuntime
from attention_transfer.errors import ConfigError
from attention_transfer.seeding import random_state
from attention_transfer.teacher.build import make_teacher
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.precision.bf16 import cpu_capabilities, has_bf16
from attention_transfer.training.precision.choose import batch_shape, choose_precision
from attention_transfer.training.precision.trial import Times

pytestmark = pytest.mark.speed


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
