"""The weights of the distillation terms."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from attention_transfer.config.group import SettingsGroup


class LossSettings(SettingsGroup):
    """The weights of the distillation terms."""

    heading: ClassVar = "Loss: cross-entropy + alpha KD + beta AT"

    temperature: float = Field(4.0, gt=0, description="temperature of knowledge distillation")
    alpha: float = Field(0.0, ge=0, description="weight of knowledge distillation (KD) of the logits")
    beta: float = Field(1e3, ge=0, description="weight of attention transfer (AT)")
    attention: Literal["sum", "max"] = Field(
        "sum", description="attention map: sum or maximum over channels of the features' magnitudes to a power"
    )
    attention_power: float = Field(2.0, ge=1, description="that power; a higher one looks at the strongest cells alone")
