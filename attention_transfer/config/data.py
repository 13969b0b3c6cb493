"""The data: folders, classes, pixels and loading."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from attention_transfer.config.group import Fraction, Names, Path, SettingsGroup, Side, Triple, as_size, as_tuple

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DataSettings(SettingsGroup):
    """The data: folders, classes, pixels and loading."""

    heading: ClassVar = "Data"

    data_dir: Path = Field(
        "data", description="train/, val/ and test/ folders, a folder of class folders, or a table of paths and labels"
    )
    unlabelled_dir: Path | None = Field(
        None,
        description="any tree of images without labels, of which each batch has some more; cross-entropy passes them "
        "over",
    )
    unlabelled_ratio: float = Field(
        1.0, gt=0, description="unlabelled images to each labelled batch, as a fraction of batch_size"
    )
    num_classes: int | None = Field(None, ge=2, description="number of classes; None reads it from the data")
    class_names: Names | None = Field(
        None, description="names of the classes, in the order of their numbers; None reads them from the data"
    )
    # the pair first, so that the flag takes one number or two
    image_size: Annotated[tuple[Side, Side] | Side, BeforeValidator(as_size)] = Field(
        128, description="side of the square images in pixels, or height and width"
    )
    resize: Literal["squash", "crop", "pad"] = Field(
        "squash",
        description="how an image fills image_size: squash its aspect ratio, crop its centre, or pad it with the mean "
        "colour",
    )
    crop_pct: Fraction = Field(
        0.875, description="with resize='crop', the centre's share of the shorter side, as at evaluation elsewhere"
    )
    mean: Triple = Field(IMAGENET_MEAN, description="mean of each channel, of pixels in [0, 1]")
    std: Triple = Field(IMAGENET_STD, description="standard deviation of each channel, of pixels in [0, 1]")
    pixel_range: Annotated[tuple[float, float], BeforeValidator(as_tuple)] | Literal["auto"] = Field(
        "auto",
        description="lowest and highest value of 16-bit, 32-bit and float images; auto = as the training set has",
    )
    batch_size: int = Field(32, ge=1, description="images a step, over all processes")
    num_workers: int = Field(4, ge=0, description="processes that load images")
    split_seed: int = Field(0, ge=0, lt=2**63, description="seed of the cut of a missing val or test split")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = Field(
        "auto", description="share of train that becomes a missing val split; auto = 0.15, at most 10,000 images"
    )
    test_fraction: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        "auto", description="share of train that becomes a missing test split; auto as for val_fraction; 0 = no test"
    )

    @field_validator("std")
    @classmethod
    def _positive_std(cls, std: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(std) <= 0:
            raise ValueError("each standard deviation must be greater than 0")
        return std

    @field_validator("pixel_range")
    @classmethod
    def _ordered_range(cls, pair: Any) -> Any:
        if pair != "auto" and pair[0] >= pair[1]:
            raise ValueError("the first number must be below the second")
        return pair

    @model_validator(mode="after")
    def _something_is_trained_on(self) -> Self:
        fractions = [each for each in (self.val_fraction, self.test_fraction) if not isinstance(each, str)]
        if sum(fractions) >= 1:
            raise ValueError("val_fraction and test_fraction together leave nothing to train on; make them smaller")
        return self

    @model_validator(mode="after")
    def _names_match_their_number(self) -> Self:
        names, number = self.class_names, self.num_classes
        if names is not None and number is not None and len(names) != number:
            raise ValueError(f"num_classes is {number}, but class_names has {len(names)} names")
        if names is not None and len(set(names)) != len(names):
            raise ValueError(f"class_names has a name twice: {', '.join(names)}")
        return self
