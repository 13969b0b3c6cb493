"""The views of the training images."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from attention_transfer.config.group import Fraction, SettingsGroup, as_tuple

Part = Literal["default", "pad_crop", "erasing", "trivial"]


def _as_parts(value: object) -> object:
    """A single name as a tuple, and a list too; anything else unchanged."""
    return (value,) if isinstance(value, str) else as_tuple(value)


class AugmentationSettings(SettingsGroup):
    """The views of the training images."""

    heading: ClassVar = "Augmentation of training images"

    augment: bool = Field(False, description="train on random views of the images, as augmentation names them")
    augmentation: Annotated[tuple[Part, ...], BeforeValidator(_as_parts), Field(min_length=1)] = Field(
        ("default",),
        description="parts of a view, beside flip: default = random crop, rotation and colour jitter; pad_crop = shift "
        "by up to 1/8, with reflection; erasing = random erasing; trivial = TrivialAugment",
    )
    crop_scale: Annotated[tuple[Fraction, Fraction], BeforeValidator(as_tuple)] = Field(
        (0.6, 1.0), description="least and greatest area of a random crop, as a fraction of the image"
    )
    flip: bool = Field(True, description="mirror half of the augmented images (not for text or digits)")
    rotation: float = Field(10.0, ge=0, le=180, description="greatest rotation of augmented images in degrees")
    color_jitter: float = Field(
        0.2, ge=0, le=1, description="greatest relative change of brightness, contrast and saturation"
    )
    mixup: float = Field(0.0, ge=0, description="alpha of mixup; 0 = off, and of two, each has half of the views")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix; 0 = off")
    mask_rotation: bool = Field(
        False,
        description="compare no attention in the corners that a rotation empties; always so with augment_views='warp', "
        "and where resize or another part of augmentation leaves something empty",
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

    @field_validator("augmentation")
    @classmethod
    def _each_part_once(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(parts)) < len(parts):
            raise ValueError("each part must be named once")
        return parts

    @model_validator(mode="after")
    def _parts_are_used(self) -> Self:
        if self.augmentation != ("default",) and not self.augment:
            raise ValueError(
                f"augmentation is {' '.join(self.augmentation)}, but augment is False, so that no image is augmented: "
                "set augment=True, or leave augmentation out"
            )
        return self

    @model_validator(mode="after")
    def _can_mix(self) -> Self:
        mixes = [name for name in ("mixup", "cutmix") if getattr(self, name) > 0]
        if mixes and not self.augment:
            raise ValueError(
                f"{mixes[0]} is {getattr(self, mixes[0])}, but augment is False, and mixing is a part of augmented "
                f"views: set augment=True, or {mixes[0]}=0"
            )
        if mixes and self.augment_views == "warp":
            raise ValueError(
                f"{mixes[0]} is {getattr(self, mixes[0])}, but augment_views is 'warp': the attention on a mixed image "
                f"is not that on the two whole images; set augment_views to a number or None, or {mixes[0]}=0"
            )
        return self

    @field_validator("crop_scale")
    @classmethod
    def _ordered_areas(cls, pair: tuple[float, float]) -> tuple[float, float]:
        if pair[0] > pair[1]:
            raise ValueError("the first number must not be above the second")
        return pair
