"""The recipe: optimiser, schedule and seed."""

from __future__ import annotations

import itertools
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from attention_transfer.config.group import Names, SettingsGroup, Weights, as_tuple, modules_or, word_alone

Epochs = Annotated[tuple[int, ...], BeforeValidator(as_tuple)]
Schedule = Literal["step", "multistep", "cosine", "onecycle", "poly", "constant"]
BestWeights = Literal["auto", "student", "ema"]


class RecipeSettings(SettingsGroup):
    """The recipe: optimiser, schedule and seed."""

    heading: ClassVar = "Recipe"

    epochs: int = Field(50, ge=1, description="passes over the training images")
    optimizer: str = Field(
        "sgd",
        min_length=1,
        description="the optimizer: sgd is torch's; other lower-case names are timm's (adamw, lamb, lion, ...), class "
        "names torch's (RMSprop)",
    )
    lr: float = Field(0.01, gt=0, description="learning rate; the highest one of schedules that rise and fall")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum, where the optimizer has one")
    nesterov: bool = Field(False, description="Nesterov's momentum, where the optimizer has it")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay of the optimizer")
    weight_decay_norms: bool = Field(True, description="let biases and the weights of norms decay, too")
    schedule: Schedule = Field(
        "step",
        description="of the learning rate: step and multistep cut it by gamma, cosine, onecycle and poly (power 0.9) "
        "change it after each batch down to min_lr",
    )
    step_size: int = Field(10, ge=1, description="epochs between two cuts of the learning rate (schedule step)")
    milestones: Epochs | None = Field(
        None, min_length=1, description="epochs after which the learning rate is cut (schedule multistep)"
    )
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
    warmup_epochs: int = Field(
        0, ge=0, description="epochs in which the learning rate rises to lr, batch by batch; with onecycle 0 is 30 %"
    )
    min_lr: float = Field(0.0, ge=0, description="where cosine, onecycle and poly end")
    clip_grad: float | None = Field(None, gt=0, description="greatest norm of the gradients; none clips nothing")
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step of the optimizer")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of an average of the student's weights, e.g. 0.999; none makes none"
    )
    ema_start: int | None = Field(
        None, ge=1, description="epoch from which validation measures the average; none is the first"
    )
    best_weights: BestWeights = Field(
        "auto",
        description="whose weights are measured, kept and returned as the best; auto is ema where there is one",
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

    @field_validator("milestones")
    @classmethod
    def _rising(cls, milestones: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if milestones is not None and not all(a < b for a, b in itertools.pairwise((0, *milestones))):
            raise ValueError("it must be rising epochs, each at least 1")
        return milestones

    @model_validator(mode="after")
    def _balanced_once(self) -> Self:
        if self.sampler == "balanced" and self.class_weights == "auto":
            raise ValueError("sampler 'balanced' and class_weights 'auto' would balance the classes twice; take one")
        return self
