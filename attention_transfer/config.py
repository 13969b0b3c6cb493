"""The settings of a run: defaults, types, ranges, help texts, flags and documentation in one place.

`Config` is the single source. In the public API it is a plain dict (`DEFAULT_CONFIG`, `create_at_config`);
the command line and the README's table are made from it. This module imports no torch, so that `--help` is instant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from attention_transfer.catalogue import canonical_network_name, nearest
from attention_transfer.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _as_path(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Path = Annotated[str, BeforeValidator(_as_path), Field(min_length=1)]
Triple = Annotated[tuple[float, float, float], BeforeValidator(_as_tuple)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Switch = Literal["auto", "on", "off"]


class Config(BaseModel):
    """Every setting of a run. Frozen; unknown keys, wrong types and values out of range are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        validate_default=True,
    )

    # student and teacher
    model: str = Field("MultiBranchNet", description="the student: a network's name (see `attention-transfer info`)")
    weights: str | None = Field(
        None, description="torchvision's pretrained weights for a ResNet18 or ResNet50 student, e.g. DEFAULT"
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

    # data
    data_dir: Path = Field("data", description="train/, val/ and test/ folders, or a folder of class folders")
    num_classes: int | None = Field(None, ge=2, description="number of classes; None reads it from the data")
    class_names: Names | None = Field(
        None, description="names of the classes, in the order of their numbers; None reads them from the data"
    )
    image_size: int = Field(128, ge=8, le=4096, description="side of the square images in pixels")
    mean: Triple = Field(IMAGENET_MEAN, description="mean of each channel, of pixels in [0, 1]")
    std: Triple = Field(IMAGENET_STD, description="standard deviation of each channel, of pixels in [0, 1]")
    pixel_range: Annotated[tuple[float, float], BeforeValidator(_as_tuple)] | Literal["auto"] = Field(
        "auto",
        description="lowest and highest value of 16-bit, 32-bit and float images; auto = as the training set has",
    )
    batch_size: int = Field(32, ge=1, description="images a step, over all processes")
    num_workers: int = Field(4, ge=0, description="processes that load images")
    split_seed: int = Field(0, ge=0, lt=2**63, description="seed of the cut of a missing val or test split")

    # augmentation
    augment: bool = Field(False, description="random crop, flip, rotation and colour jitter of training images")
    crop_scale: Annotated[tuple[Fraction, Fraction], BeforeValidator(_as_tuple)] = Field(
        (0.6, 1.0), description="least and greatest area of a random crop, as a fraction of the image"
    )
    flip: bool = Field(True, description="mirror half of the augmented images (not for text or digits)")
    rotation: float = Field(10.0, ge=0, le=180, description="greatest rotation of augmented images in degrees")
    color_jitter: float = Field(
        0.2, ge=0, le=1, description="greatest relative change of brightness, contrast and saturation"
    )
    augment_views: Annotated[int, Field(ge=1)] | Literal["warp"] | None = Field(
        None,
        description="views of each image: None makes new ones each epoch and runs the teacher on them; K takes turns "
        "through K, and the teacher runs in K epochs alone; warp makes new ones each epoch, and warps the teacher's "
        "attention on the whole image",
    )
    augment_seed: int = Field(
        0, ge=0, lt=2**63, description="seed of the views; apart from seed, so that runs share the teacher's memory"
    )

    # recipe
    epochs: int = Field(50, ge=1, description="passes over the training images")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay of SGD")
    step_size: int = Field(10, ge=1, description="epochs between two cuts of the learning rate")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of each cut of the learning rate")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the weights and the order of images")

    # loss
    temperature: float = Field(4.0, gt=0, description="temperature of knowledge distillation")
    alpha: float = Field(0.0, ge=0, description="weight of knowledge distillation (KD) of the logits")
    beta: float = Field(1e3, ge=0, description="weight of attention transfer (AT)")

    # machine
    device: str = Field("auto", description="auto (cuda, else mps, else cpu), cpu, mps, cuda or cuda:1")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="number format of the student; auto = bf16 on GPUs that have it, on a CPU that has "
        "bf16 instructions what a trial finds to be faster",
    )
    teacher_precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="number format in which the teacher answers; auto as for precision"
    )
    compile: bool = Field(False, description="compile the student with torch.compile (CUDA only)")

    # caches
    pixel_cache: Switch = Field(
        "auto",
        description="decode each image once and keep its pixels; auto = if they fit in half of the free disk",
    )
    teacher_cache: Switch = Field(
        "auto", description="keep what the teacher answers; auto = where an answer is used twice, and they fit"
    )
    map_precision: Literal["fp16", "fp32"] = Field("fp16", description="number format of the kept attention maps")
    hash_files: bool = Field(False, description="know an image by its content instead of its size and time")
    cache_dir: Path | None = Field(None, description="folder of all that is kept; None is the user's cache folder")
    cache_limit: float = Field(
        50.0, gt=0, description="gigabytes in cache_dir above which what was not used longest is removed"
    )

    # files
    print_freq: int = Field(100, ge=1, description="batches between two lines in the log")
    save_minutes: float = Field(
        10.0, gt=0, description="minutes between two saves of the last state, inside an epoch too"
    )
    save_freq: int = Field(10, ge=1, description="epochs between two numbered checkpoints")
    figure_freq: int = Field(5, ge=0, description="epochs between two attention figures in TensorBoard; 0 draws none")
    save_dir: Path = Field("checkpoints", description="folder of the checkpoints")
    log_dir: Path = Field("logs", description="folder of the log, the summary and the TensorBoard run")
    experiment_name: str | None = Field(None, description="name of the run's files; None makes a unique one")
    resume: Path | None = Field(
        None, description="a checkpoint to go on from; auto = this experiment's newest, or from the start"
    )
    overwrite: bool = Field(False, description="replace a finished run of the same name")

    @field_validator("model", "teacher_arch")
    @classmethod
    def _known_network(cls, name: str | None) -> str | None:
        return name if name is None else canonical_network_name(name)

    @field_validator("std")
    @classmethod
    def _positive_std(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("each standard deviation must be greater than 0")
        return std

    @field_validator("crop_scale", "pixel_range")
    @classmethod
    def _ordered(cls, pair: Any, info: ValidationInfo) -> Any:
        is_area = info.field_name == "crop_scale"  # all crops may have the same area
        if pair != "auto" and (pair[0] > pair[1] or (pair[0] == pair[1] and not is_area)):
            raise ValueError(f"the first number must {'not be above' if is_area else 'be below'} the second")
        return pair

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ValueError("allowed are auto, cpu, mps, cuda and cuda:N")
        return device

    @field_validator("experiment_name")
    @classmethod
    def _a_file_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[^/\\\0]*[^/\\\0. ][^/\\\0]*", name):
            raise ValueError("it names files, so it must not be empty or contain a slash")
        return name

    @model_validator(mode="after")
    def _names_match_their_number(self) -> Config:
        names, number = self.class_names, self.num_classes
        if names is not None and number is not None and len(names) != number:
            raise ValueError(f"num_classes is {number}, but class_names has {len(names)} names")
        if names is not None and len(set(names)) != len(names):
            raise ValueError(f"class_names has a name twice: {', '.join(names)}")
        return self


def resolve_config(config: Config | Mapping[str, Any] | None = None) -> Config:
    """A complete, checked `Config` from a partial dict, from None (`DEFAULT_CONFIG`), or from a `Config`.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range; the message names the key, the
            value, what is allowed and, for an unknown key, the nearest known one.
    """
    if isinstance(config, Config):
        return config
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(f"config must be a dict, but is {config!r}; start from create_at_config().")
    try:
        return Config.model_validate(dict(DEFAULT_CONFIG if config is None else config))
    except ValidationError as error:
        # a value with several allowed types fails once for each
        sentences = {details["loc"][:1] or (number,): details for number, details in enumerate(error.errors())}
        raise ConfigError("\n".join(map(_sentence, sentences.values()))) from None


def _sentence(details: ErrorDetails) -> str:
    if not details["loc"]:
        return details["msg"].removeprefix("Value error, ") + "."
    key = str(details["loc"][0])
    if details["type"] == "extra_forbidden":
        return f"{key!r} is not a setting.{nearest(key, list(Config.model_fields))}"
    reason = details["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
    reason = f": {reason.rstrip('.')}" if len(details["loc"]) == 1 else ""
    return f"{key} is {details['input']!r}{reason} (allowed: {allowed_values(key)})."


def allowed_values(key: str) -> str:
    """The type and range of a setting in words, as in "integer, at least 1".

    Example:
        >>> allowed_values("momentum")
        'number, at least 0, below 1'
    """
    schema = _json_properties()[key]
    variants = schema.get("anyOf", [schema])
    return " or ".join(_variant_in_words(variant) for variant in variants)


@cache
def _json_properties() -> dict[str, Any]:
    properties: dict[str, Any] = Config.model_json_schema(mode="serialization")["properties"]
    return properties


def _variant_in_words(variant: Mapping[str, Any]) -> str:
    if "enum" in variant:
        return " | ".join(variant["enum"])
    if "const" in variant:
        return str(variant["const"])
    if variant["type"] == "array":
        items = variant.get("prefixItems")
        return f"{len(items)} numbers" if items else "list of names"
    names = {
        "integer": "integer",
        "number": "number",
        "boolean": "true or false",
        "string": "text",
        "null": "none",
    }
    bounds = {
        "minimum": "at least {:g}",
        "exclusiveMinimum": "above {:g}",
        "maximum": "at most {:g}",
        "exclusiveMaximum": "below {:g}",
    }
    limits = [text.format(variant[bound]) for bound, text in bounds.items() if bound in variant]
    return ", ".join([names[variant["type"]], *limits])


def create_at_config(**settings: Any) -> dict[str, Any]:
    """A complete configuration as a plain dict: the defaults, with `settings` on top.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range.

    Example:
        >>> create_at_config(epochs=5, beta=500.0)["lr"]
        0.01
    """
    return resolve_config(settings).model_dump()


DEFAULT_CONFIG: dict[str, Any] = create_at_config()
"""Every setting at its default; a plain dict that may be copied and changed."""
