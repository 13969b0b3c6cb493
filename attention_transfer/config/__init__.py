"""The settings of a run: defaults, types, ranges, help texts, flags and documentation in one place.

`Config` is the single source: one file a group of settings, the keys of all groups flat. In the public API it is a
plain dict (`DEFAULT_CONFIG`, `create_at_config`); the command line and README's table are made from it. Nothing here
imports torch, so that `--help` is instant.
"""

from attention_transfer.config.config import GROUPS, Config
from attention_transfer.config.data import IMAGENET_MEAN, IMAGENET_STD
from attention_transfer.config.messages import allowed_values
from attention_transfer.config.resolve import DEFAULT_CONFIG, create_at_config, resolve_config

__all__ = [
    "DEFAULT_CONFIG",
    "GROUPS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Config",
    "allowed_values",
    "create_at_config",
    "resolve_config",
]
