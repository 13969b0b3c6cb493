"""The loss terms that the settings name."""

from __future__ import annotations

from typing import Any

from attention_transfer.config import Config
from attention_transfer.errors import ConfigError
from attention_transfer.features.attention_probabilities import CLASS_TOKEN
from attention_transfer.features.gradients import GRADIENT
from attention_transfer.features.maps import MapFunction
from attention_transfer.features.power_maps import power_map
from attention_transfer.losses.attention import AttentionTransfer
from attention_transfer.losses.hint import Hint
from attention_transfer.losses.logits.dist import RelationDistillation
from attention_transfer.losses.logits.dkd import DecoupledDistillation
from attention_transfer.losses.logits.kd import KnowledgeDistillation
from attention_transfer.losses.logits.term import LogitDistillation
from attention_transfer.losses.schedules import Kind, WeightSchedule
from attention_transfer.losses.term import LossTerm


def logit_term(config: Config) -> LogitDistillation:
    """The distillation loss of the logits, by `logit_loss`."""
    common: dict[str, Any] = {
        "is_standardized": config.logit_standardization,
        "balance": config.kd_balance,
        "schedule": _schedule(config, config.alpha_schedule),
    }
    match config.logit_loss:
        case "kd":
            return KnowledgeDistillation(config.alpha, config.temperature, **common)
        case "dkd":
            weights = config.dkd_target, config.dkd_nontarget
            return DecoupledDistillation(config.alpha, config.temperature, *weights, config.dkd_warmup, **common)
        case "dist":
            return RelationDistillation(config.alpha, config.temperature, **common)


def attention_term(config: Config, map_function: MapFunction | None = None) -> AttentionTransfer:
    """Attention transfer, of the maps that `chosen_map_function` gives."""
    maps = chosen_map_function(config, map_function)
    schedule = _schedule(config, config.beta_schedule)
    return AttentionTransfer(config.beta, maps, config.stage_weights, config.attention_reduction, schedule)


def feature_terms(config: Config) -> list[LossTerm]:
    """Hints, where their weight is above 0; a term that needs features keeps the teacher from being cached."""
    return [Hint(config.hint)] if config.hint > 0 else []


def _schedule(config: Config, kind: Kind) -> WeightSchedule:
    return WeightSchedule(kind, config.epochs, config.loss_warmup * config.epochs)


def chosen_map_function(config: Config, map_function: MapFunction | None = None) -> MapFunction:
    """The kind of attention map that AT compares: the user's own, or that of `attention` and `attention_power`.

    Args:
        config: uses both settings.
        map_function: the user's own, or None.

    Raises:
        ConfigError: there is one, and the settings are not at their defaults.
    """
    if map_function is None:
        match config.attention:
            case "gradient":
                return GRADIENT
            case "class_token":
                return CLASS_TOKEN
            case reduction:
                return power_map(reduction, config.attention_power)
    default, given = Config(), (config.attention, config.attention_power)
    if given != (default.attention, default.attention_power):
        raise ConfigError(
            f"attention is {given[0]!r} with attention_power {given[1]:g}, but there is a map_function "
            f"{map_function.name!r} too; leave both settings out, or the map_function."
        )
    return map_function
