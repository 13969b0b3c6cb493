"""What is kept on disk between epochs and runs."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from attention_transfer.config.group import Path, SettingsGroup, Switch


class CacheSettings(SettingsGroup):
    """What is kept on disk between epochs and runs."""

    heading: ClassVar = "Caches"

    pixel_cache: Switch = Field(
        "auto",
        description="decode each image once and keep its pixels; auto = if they fit in half of the free disk",
    )
    teacher_cache: Switch = Field(
        "auto", description="keep what the teacher answers; auto = where an answer is used twice, and they fit"
    )
    map_precision: Literal["fp16", "fp32"] = Field("fp16", description="number format of the kept attention maps")
    hash_files: bool = Field(False, description="know an image by its content instead of its size and time")
    cache_dir: Path | None = Field(None, description="folder of all that is kept; None is the user's cache folder")
    cache_limit: float = Field(
        50.0, gt=0, description="gigabytes in cache_dir above which what was not used longest is removed"
    )
