"""What the tests of the choice of a number format share: processors, times, networks, and choosing on a CPU.

The processor and the times are handed in, so that no test depends on how fast the machine is.
"""

from __future__ import annotations

import json
import random
import threading

import numpy as np
import torch
from torch import nn

from attention_transfer import create_model
from attention_transfer.config import resolve_config
from attention_transfer.distributed import AcceleratedRuntime
from attention_transfer.training.precision.choose import choose_precision, choose_teacher_precision
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
