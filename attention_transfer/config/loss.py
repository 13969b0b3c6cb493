"""The weights of the distillation terms."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from attention_transfer.config.group import Fraction, NotNegative, SettingsGroup

WeightSchedule = Literal["constant", "linear", "cosine", "warmup"]


class LossSettings(SettingsGroup):
    """The weights of the distillation terms."""

    heading: ClassVar = "Loss: cross-entropy + alpha KD + beta AT"

    temperature: float = Field(4.0, gt=0, description="temperature of knowledge distillation")
    alpha: float = Field(0.0, ge=0, description="weight of knowledge distillation (KD) of the logits")
    logit_loss: Literal["kd", "dkd", "dist"] = Field(
        "kd", description="distillation of the logits: Hinton's KD, decoupled (DKD), or of relations (DIST)"
    )
    logit_standardization: bool = Field(
        False, description="compare logits without their mean and standard deviation ('kd' and 'dkd')"
    )
    kd_balance: Literal["sum", "paper"] = Field(
        "sum", description="cross-entropy + alpha KD, or (1 - alpha) cross-entropy + alpha KD"
    )
    dkd_target: float = Field(1.0, ge=0, description="weight of DKD's part about the label's class")
    dkd_nontarget: float = Field(8.0, ge=0, description="weight of DKD's part about the other classes")
    dkd_warmup: float = Field(20.0, ge=0, description="epochs over which the weight of DKD rises from 0")
    beta: float = Field(1e3, ge=0, description="weight of attention transfer (AT)")
    attention: Literal["sum", "max", "gradient", "class_token"] = Field(
        "sum",
        description="attention map: sum or max over channels of the features' magnitudes to a power; gradient = of the "
        "cross-entropy by the pixels, squared; class_token = where a transformer's class token looks",
    )
    attention_power: float = Field(
        2.0, ge=1, description="the power of sum and max; a higher one looks at the strongest cells alone"
    )
    attention_reduction: Literal["mean", "sum", "paper"] = Field(
        "mean",
        description="of a stage's differences: mean or sum over cells of the squares, or half their norm; see "
        "docs/attention.md for beta",
    )
    stage_weights: NotNegative | None = Field(
        None, description="weights of the compared pairs of stages in AT, shallow to deep; None: all 1"
    )

    hint: float = Field(
        0.0, ge=0, description="weight of hints (FitNets): features through trained 1x1 projectors; not cached"
    )
    alpha_schedule: WeightSchedule = Field(
        "constant",
        description="alpha over the run: constant; linear, cosine = to 0 at its end; warmup = from 0 (loss_warmup)",
    )
    beta_schedule: WeightSchedule = Field("constant", description="beta over the run, as alpha_schedule")
    loss_warmup: Fraction = Field(0.1, description="part of the run in which warmup raises alpha or beta from 0")

    @model_validator(mode="after")
    def _logit_settings_agree(self) -> Self:
        if self.kd_balance == "paper" and self.alpha > 1:
            raise ValueError(f"kd_balance is 'paper', (1 - alpha) CE + alpha KD, but alpha is {self.alpha:g}, above 1")
        if self.logit_standardization and self.logit_loss == "dist":
            raise ValueError(
                "logit_standardization goes with logit_loss 'kd' or 'dkd'; 'dist' compares correlations, which know no "
                "scale anyway"
            )
        return self

    @model_validator(mode="after")
    def _attention_has_a_power(self) -> Self:
        if self.attention in ("gradient", "class_token") and self.attention_power != 2:
            raise ValueError(
                f"attention_power is {self.attention_power:g}, but attention={self.attention!r} has no power; leave "
                "attention_power out"
            )
        return self

    @model_validator(mode="after")
    def _some_stage_counts(self) -> Self:
        if self.stage_weights is not None and not any(self.stage_weights):
            raise ValueError("all of stage_weights are 0, so that AT compares nothing; set beta=0 instead")
        return self
