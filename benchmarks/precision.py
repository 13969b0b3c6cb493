"""`python -m benchmarks.precision`: a training step in fp32 and in bf16, and what `precision='auto'` makes of it.

About three minutes; run it alone. The first arm of each table is fp32 in PyTorch's own memory layout.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from attention_transfer import create_model
from attention_transfer.config import resolve_config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import Runtime
from attention_transfer.teacher.base import NoTeacher
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.epoch import run_training_epoch
from attention_transfer.training.precision.choose import choose_precision, processor
from benchmarks.measuring.timing import table, take_turns

CASES = (("CifarResNet-20", 128, 32), ("ResNet18", 32, 128), ("MultiBranchNet", 32, 128))
"""Network, batch and side of the images."""

STEPS = 10_000
"""The length of the run for which 'auto' chooses."""

CPU = torch.device("cpu")


def arm(name: str, batch: int, side: int, precision: str, memory_format: torch.memory_format) -> Callable[[], object]:
    """A step as training takes it."""
    runtime = Runtime(CPU, precision)
    runtime.memory_format = memory_format
    student = create_model(name, 10).to(memory_format=memory_format)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3, momentum=0.9)
    criterion = Criterion(resolve_config({}), NoTeacher(), runtime)
    data = [Batch(torch.randn(batch, 3, side, side), torch.arange(batch) % 10)]
    return lambda: run_training_epoch(criterion, student, data, optimizer, runtime)


def chosen(name: str, batch: int, side: int) -> str:
    """What 'auto' comes to without an earlier answer."""
    runtime = Runtime(CPU)
    runtime.memory_format = torch.channels_last
    student = create_model(name, 10).to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        shape = (batch, 3, side, side)
        return choose_precision(resolve_config({}), runtime, student, None, shape, STEPS, Path(folder))


def main() -> None:
    """Print the tables."""
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for case in CASES:
        arms = {
            "fp32, NCHW": arm(*case, "fp32", torch.contiguous_format),
            "fp32, channels last": arm(*case, "fp32", torch.channels_last),
            "bf16, channels last": arm(*case, "bf16", torch.channels_last),
        }
        name, batch, side = case
        table(f"{name}, batch {batch}, {side}x{side}", take_turns(arms, rounds=9))
        print(f"  auto takes {chosen(*case)}")


if __name__ == "__main__":
    main()
