"""All settings of a run as one object: complete, checked and frozen."""

from __future__ import annotations

from attention_transfer.config.augmentation import AugmentationSettings
from attention_transfer.config.caches import CacheSettings
from attention_transfer.config.data import DataSettings
from attention_transfer.config.files import FileSettings
from attention_transfer.config.group import SettingsGroup
from attention_transfer.config.loss import LossSettings
from attention_transfer.config.machine import MachineSettings
from attention_transfer.config.networks import NetworkSettings
from attention_transfer.config.recipe import RecipeSettings

GROUPS: tuple[type[SettingsGroup], ...] = (
    NetworkSettings,
    DataSettings,
    AugmentationSettings,
    RecipeSettings,
    LossSettings,
    MachineSettings,
    CacheSettings,
    FileSettings,
)
"""The groups in the order of `--help` and of the README's table."""


class Config(
    # pydantic takes the fields of the last base first
    FileSettings,
    CacheSettings,
    MachineSettings,
    LossSettings,
    RecipeSettings,
    AugmentationSettings,
    DataSettings,
    NetworkSettings,
):
    """Every setting of a run; the keys of all groups, flat."""
