"""The rules of going on from a checkpoint."""

from __future__ import annotations

from typing import Any

from attention_transfer.config import Config, resolve_config
from attention_transfer.errors import ConfigError, TeacherError

MAY_CHANGE = frozenset(
    {
        "epochs", "device", "num_workers", "data_dir", "experiment_name", "print_freq", "save_freq", "figure_freq",
        "save_dir", "log_dir", "resume", "overwrite", "teacher_model", "teacher_arch", "pixel_cache", "teacher_cache",
        "cache_dir", "cache_limit", "hash_files", "compile",
    }
)  # fmt: skip
"""Keys that may differ from the checkpoint's; the teacher itself is compared by the hash of its weights."""


def resumed_config(config: Config, checkpoint: dict[str, Any], source: str) -> Config:
    """The configuration of a resumed run: the checkpoint's fills every key that is left at its default.

    Raises:
        ConfigError: a key contradicts the checkpoint and may not change; names the key and both values.
    """
    saved = resolve_config(checkpoint["config"])
    default = Config()
    merged: dict[str, Any] = {}
    for key in Config.model_fields:
        here, there = getattr(config, key), getattr(saved, key)
        is_given = here != getattr(default, key)
        if is_given and here != there and key not in MAY_CHANGE:
            raise ConfigError(
                f"{key} is {here!r}, but {source} was trained with {there!r}; leave {key} out to go on with "
                f"{there!r}, or start a new run."
            )
        merged[key] = here if is_given else there
    # where a run goes on is another machine's matter, and 'auto' a choice like any other
    merged["device"], merged["resume"], merged["overwrite"] = config.device, config.resume, config.overwrite
    return Config(**merged)


def refuse_another_teacher(here: str | None, checkpoint: dict[str, Any], source: str) -> None:
    """A run goes on with the teacher that it had.

    Raises:
        TeacherError: the hash of the teacher's weights is another one.
    """
    there = checkpoint["training"]["teacher_digest"]
    if here != there:
        raise TeacherError(
            f"{source} was trained with {_teacher(there)}, but this run has {_teacher(here)}; hand over the same "
            "teacher, or start a new run."
        )


def _teacher(digest: str | None) -> str:
    return "no teacher" if digest is None else f"a teacher whose weights have the hash {digest[:12]}"
