"""The networks: student, teacher, and the modules that are compared."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from attention_transfer.catalogue import canonical_network_name, is_path
from attention_transfer.config.group import Names, Path, SettingsGroup, Side, Triple, as_size


class NetworkSettings(SettingsGroup):
    """The networks: student, teacher, and the modules that are compared."""

    heading: ClassVar = "Student and teacher"

    model: Path = Field(
        "MultiBranchNet",
        description="the student: a network's name (see `attention-transfer info`), timm/NAME, torchvision/NAME, or a "
        "file with a network's weights",
    )
    weights: str | None = Field(
        None,
        min_length=1,
        description="pretrained weights of the student: DEFAULT, a tag of timm, an entry of torchvision, or a file",
    )
    init_from: Path | None = Field(
        None,
        description="a checkpoint whose weights a new run begins with; its head is left out where the classes differ",
    )
    teacher_model: Path | None = Field(
        None,
        description="the teacher: a checkpoint's path; timm/NAME or torchvision/NAME, pretrained; or ResNet50:DEFAULT",
    )
    teacher_arch: str | None = Field(
        None,
        description="the teacher's network name, where its file fits more than one, or is of timm/NAME or "
        "torchvision/NAME",
    )
    teacher_key: str | None = Field(
        None,
        min_length=1,
        description="where the teacher's checkpoint keeps its weights, as in 'ema.model'; None finds it",
    )
    teacher_mean: Triple | Literal["auto", "run"] = Field(
        "auto",
        description="mean of each channel for the teacher; auto = as it was trained, where it tells; run = mean",
    )
    teacher_std: Triple | Literal["auto", "run"] = Field(
        "auto", description="standard deviation of each channel for the teacher; auto and run as for teacher_mean"
    )
    # the pair first, so that the flag takes one number or two
    teacher_image_size: Annotated[tuple[Side, Side] | Side, BeforeValidator(as_size)] | Literal["auto", "run"] = Field(
        "auto",
        description="side, or height and width, to which images are resized for the teacher; auto = that of a network "
        "of one size; run = image_size",
    )
    layers: Names | None = Field(
        None,
        description="modules to compare, instead of the stages: 'layer3', or 'student.module:teacher.module'",
    )

    @field_validator("teacher_std")
    @classmethod
    def _positive_teacher_std(cls, std: Any) -> Any:
        if isinstance(std, tuple) and min(std) <= 0:
            raise ValueError("each standard deviation must be greater than 0")
        return std

    @field_validator("model", "teacher_arch")
    @classmethod
    def _known_network(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is None or (info.field_name == "model" and is_path(name)):
            return name
        return canonical_network_name(name)
