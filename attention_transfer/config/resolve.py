"""From a partial dict to a complete, checked `Config`, and back to a plain dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from attention_transfer.config.config import Config
from attention_transfer.config.messages import refusal
from attention_transfer.errors import ConfigError


def resolve_config(config: Config | Mapping[str, Any] | None = None) -> Config:
    """A complete, checked `Config` from a partial dict, from None (`DEFAULT_CONFIG`), or from a `Config`.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range; the message names the key, the
            value, what is allowed and, for an unknown key, the nearest known one.
    """
    if isinstance(config, Config):
        return config
    if config is not None and not isinstance(config, Mapping):
        raise ConfigError(f"config must be a dict, but is {config!r}; start from create_at_config().")
    try:
        return Config.model_validate(dict(DEFAULT_CONFIG if config is None else config))
    except ValidationError as error:
        # a value with several allowed types fails once for each
        sentences = {details["loc"][:1] or (number,): details for number, details in enumerate(error.errors())}
        raise ConfigError("\n".join(map(refusal, sentences.values()))) from None


def create_at_config(**settings: Any) -> dict[str, Any]:
    """A complete configuration as a plain dict: the defaults, with `settings` on top.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range.

    Example:
        >>> create_at_config(epochs=5, beta=500.0)["lr"]
        0.01
    """
    return resolve_config(settings).model_dump()


DEFAULT_CONFIG: dict[str, Any] = create_at_config()
"""Every setting at its default; a plain dict that may be copied and changed."""
