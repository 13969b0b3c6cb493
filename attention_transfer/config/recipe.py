"""The recipe: optimiser, schedule and seed."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from attention_transfer.config.group import Names, SettingsGroup, Weights, modules_or, word_alone


class RecipeSettings(SettingsGroup):
    """The recipe: optimiser, schedule and seed."""

    heading: ClassVar = "Recipe"

    epochs: int = Field(50, ge=1, description="passes over the training images")
    lr: float = Field(0.01, gt=0, description="learning rate of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay of SGD")
    step_size: int = Field(10, ge=1, description="epochs between two cuts of the learning rate")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of each cut of the learning rate")
    best_by: Literal["accuracy", "balanced_accuracy", "loss"] = Field(
        "accuracy", description="figure of validation by which the best epoch is chosen"
    )
    early_stopping: int | None = Field(
        None, ge=1, description="epochs without a better one after which the run is finished; None trains all epochs"
    )
    freeze: Annotated[Names | Literal["backbone"] | None, BeforeValidator(modules_or("backbone"))] = Field(
        None, description="modules of the student that are not trained, as layer1; backbone = all but its head"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="part of each label that cross-entropy spreads evenly over the classes"
    )
    class_weights: Annotated[Weights | Literal["auto"] | None, BeforeValidator(word_alone)] = Field(
        None,
        description="weights of the classes in cross-entropy, in their order; auto = by the inverse of their numbers "
        "of training images, 1 on average",
    )
    sampler: Literal["shuffle", "balanced"] = Field(
        "shuffle",
        description="shuffle = each training image once an epoch; balanced = as many images of each class, as many "
        "in all",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the weights and the order of images")

    @model_validator(mode="after")
    def _balanced_once(self) -> Self:
        if self.sampler == "balanced" and self.class_weights == "auto":
            raise ValueError("sampler 'balanced' and class_weights 'auto' would balance the classes twice; take one")
        return self
