"""The machine: device, processes and number formats."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from attention_transfer.config.group import SettingsGroup


class MachineSettings(SettingsGroup):
    """The machine: device, processes and number formats."""

    heading: ClassVar = "Machine"

    device: str = Field("auto", description="auto (cuda, else mps, else cpu), cpu, mps, cuda or cuda:1")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="number format of the student; auto = bf16 on GPUs that have it, on a CPU that has "
        "bf16 instructions what a trial finds to be faster",
    )
    teacher_precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format in which the teacher answers; auto as for precision"
    )
    tf32: bool = Field(
        False,
        description="compute float32 in TF32 on GPUs that have it: faster, with 10 bits of float32's 23 (CUDA only)",
    )
    compile: bool = Field(False, description="compile the student with torch.compile (CUDA only)")

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError("allowed are auto, cpu, mps, cuda and cuda:N")
        return device
