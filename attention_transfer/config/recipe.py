"""The recipe: optimiser, schedule and seed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from attention_transfer.config.group import SettingsGroup


class RecipeSettings(SettingsGroup):
    """The recipe: optimiser, schedule and seed."""

    heading: ClassVar = "Recipe"

    epochs: int = Field(50, ge=1, description="passes over the training images")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay of SGD")
    step_size: int = Field(10, ge=1, description="epochs between two cuts of the learning rate")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of each cut of the learning rate")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the weights and the order of images")
