"""The networks: student, teacher, and the modules that are compared."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from attention_transfer.catalogue import canonical_network_name
from attention_transfer.config.group import Names, Path, SettingsGroup


class NetworkSettings(SettingsGroup):
    """The networks: student, teacher, and the modules that are compared."""

    heading: ClassVar = "Student and teacher"

    model: str = Field("MultiBranchNet", description="the student: a network's name (see `attention-transfer info`)")
    weights: str | None = Field(
        None, description="torchvision's pretrained weights for a ResNet18 or ResNet50 student, e.g. DEFAULT"
    )
    init_from: Path | None = Field(
        None,
        description="a checkpoint whose weights a new run begins with; its head is left out where the classes differ",
    )
    teacher_model: Path | None = Field(
        None, description="the teacher: a checkpoint's path, or ResNet50:DEFAULT for torchvision's weights"
    )
    teacher_arch: str | None = Field(
        None, description="the teacher's network name, where its checkpoint fits more than one"
    )
    teacher_key: str | None = Field(
        None,
        min_length=1,
        description="where the teacher's checkpoint keeps its weights, as in 'ema.model'; None finds it",
    )
    layers: Names | None = Field(
        None,
        description="modules to compare, instead of the stages: 'layer3', or 'student.module:teacher.module'",
    )

    @field_validator("model", "teacher_arch")
    @classmethod
    def _known_network(cls, name: str | None) -> str | None:
        return name if name is None else canonical_network_name(name)
