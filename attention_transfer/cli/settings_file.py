"""Settings in a YAML file: a mapping of the keys of `Config`."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from attention_transfer.config import resolve_config
from attention_transfer.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also reads 1e-3 as a number; YAML 1.1 requires 1.0e-3.

    A repeated key is an error: PyYAML would silently take the last.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[str, yaml.Node] = {}
        for key, value in node.value:
            other = first.setdefault(key.value, value) if isinstance(key, yaml.ScalarNode) else value
            if other is not value:
                both = " and ".join(f"{_text(each)} in line {each.start_mark.line + 1}" for each in (other, value))
                raise ConfigError(f"{key.value} is given more than once: {both}; give it once.")
        return super().construct_mapping(node, deep)


def _text(node: yaml.Node) -> str:
    """A value as written in the file; its first line."""
    text = str(node.start_mark.buffer or "")[node.start_mark.pointer : node.end_mark.pointer]
    return text.split("\n", maxsplit=1)[0]


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a YAML file; those that it leaves out are not in the dict.

    Raises:
        ConfigError: the file cannot be read, is no mapping, or has a key or value that `resolve_config` refuses;
            the message names the file.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the settings in {path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold lines such as 'epochs: 30', but holds a {type(content).__name__}.")
    settings = {str(key): value for key, value in content.items()}
    try:
        resolve_config(settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return settings
