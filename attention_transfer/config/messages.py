"""Settings in words: what is allowed, and why a value is refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic_core import ErrorDetails

from attention_transfer.catalogue import nearest
from attention_transfer.config.config import Config


def refusal(details: ErrorDetails) -> str:
    """A sentence that names the setting, its value, what is allowed and, for an unknown key, the nearest known one."""
    if not details["loc"]:
        return details["msg"].removeprefix("Value error, ") + "."
    key = str(details["loc"][0])
    if details["type"] == "extra_forbidden":
        return f"{key!r} is not a setting.{nearest(key, list(Config.model_fields))}"
    reason = details["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
    reason = f": {reason.rstrip('.')}" if len(details["loc"]) == 1 else ""
    return f"{key} is {details['input']!r}{reason} (allowed: {allowed_values(key)})."


def allowed_values(key: str) -> str:
    """The type and range of a setting in words, as in "integer, at least 1".

    Example:
        >>> allowed_values("momentum")
        'number, at least 0, below 1'
    """
    schema = _json_properties()[key]
    variants = schema.get("anyOf", [schema])
    return " or ".join(_variant_in_words(variant) for variant in variants)


@cache
def _json_properties() -> dict[str, Any]:
    properties: dict[str, Any] = Config.model_json_schema(mode="serialization")["properties"]
    return properties


def _variant_in_words(variant: Mapping[str, Any]) -> str:
    if "enum" in variant:
        return " | ".join(variant["enum"])
    if "const" in variant:
        return str(variant["const"])
    if variant["type"] == "array":
        return _array_in_words(variant)
    names = {
        "integer": "integer",
        "number": "number",
        "boolean": "true or false",
        "string": "text",
        "null": "none",
    }
    return ", ".join([names[variant["type"]], *_limits(variant)])


def _limits(variant: Mapping[str, Any]) -> list[str]:
    bounds = {
        "minimum": "at least {:g}",
        "exclusiveMinimum": "above {:g}",
        "maximum": "at most {:g}",
        "exclusiveMaximum": "below {:g}",
    }
    return [text.format(variant[bound]) for bound, text in bounds.items() if bound in variant]


def _array_in_words(variant: Mapping[str, Any]) -> str:
    if "prefixItems" in variant:
        items = variant["prefixItems"]
        return ", ".join([f"{len(items)} numbers", *_limits(items[0])])
    if "enum" in variant["items"]:
        return f"list of {_variant_in_words(variant['items'])}"
    if "enum" in variant["items"]:
        return f"list of {' | '.join(variant['items']['enum'])}"
    if variant["items"]["type"] == "string":
        return "list of names"
    if variant["items"]["type"] == "integer":
        return "list of integers"
    item = _variant_in_words(variant["items"])
    return f"list of numbers{item.removeprefix('number').replace(',', ', each', 1)}"
