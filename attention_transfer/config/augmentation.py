"""The views of the training images."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from attention_transfer.config.group import Fraction, SettingsGroup, as_tuple


class AugmentationSettings(SettingsGroup):
    """The views of the training images."""

    heading: ClassVar = "Augmentation of training images"

    augment: bool = Field(False, description="random crop, flip, rotation and colour jitter of training images")
    crop_scale: Annotated[tuple[Fraction, Fraction], BeforeValidator(as_tuple)] = Field(
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

    @field_validator("crop_scale")
    @classmethod
    def _ordered_areas(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if pair[0] > pair[1]:
            raise ValueError("the first number must not be above the second")
        return pair
