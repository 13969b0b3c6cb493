"""The loss terms that a remembered teacher can serve, by the settings that choose them."""

from __future__ import annotations

from typing import Any

LOGITS_ALONE = {"alpha": 1.0, "beta": 0.0}
MAPS: dict[str, dict[str, Any]] = {
    "AT, sum, p = 2": {},
    "AT, sum, p = 1": {"attention_power": 1.0},
    "AT, sum, p = 2.5": {"attention_power": 2.5},
    "AT, sum, p = 4": {"attention_power": 4.0},
    "AT, max, p = 1": {"attention": "max", "attention_power": 1.0},
    "AT, max, p = 2": {"attention": "max"},
    "AT, max, p = 4": {"attention": "max", "attention_power": 4.0},
    "AT, sum, p = 2, the paper's norm": {"attention_reduction": "paper", "beta": 15.0},
}
LOGITS: dict[str, dict[str, Any]] = {
    "KD": LOGITS_ALONE,
    "KD, standardised": {**LOGITS_ALONE, "logit_standardization": True},
    "DKD": {**LOGITS_ALONE, "logit_loss": "dkd", "dkd_warmup": 0.0},
    "DIST": {**LOGITS_ALONE, "logit_loss": "dist"},
}
TERMS = MAPS | LOGITS
"""Settings of the loss by name; everything else at its default."""
