"""Fills the caches that a run would use, before any run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import Any

from attention_transfer.config import Config, resolve_config
from attention_transfer.distributed import AcceleratedRuntime
from attention_transfer.errors import ConfigError
from attention_transfer.logs import log_to_stdout
from attention_transfer.losses.total import default_terms, needs_of_teacher
from attention_transfer.teacher.build import build_teachers
from attention_transfer.teacher.cache.prefill import prefill
from attention_transfer.teacher.cache.teacher import CachedTeacher
from attention_transfer.training.precision.choose import batch_shape, with_teacher_precision
from attention_transfer.training.setup.data.classes import with_classes
from attention_transfer.training.setup.data.loaders import cache_pixels_of, open_loaders, with_pixel_range
from attention_transfer.training.setup.data.numbering import number_alike
from attention_transfer.training.setup.networks import open_teacher, prefer_channels_last


def prefill_caches(config: Mapping[str, Any] | Config | None = None) -> dict[str, int]:
    """Fill the caches: decode the images of data_dir, and compute every teacher output that a run would use.

    Args:
        config: as for `train_at`; teacher_model must name a teacher.

    Returns:
        the number of teacher outputs that were computed, by split: train and val.

    Raises:
        ConfigError: there is no teacher, or its outputs cannot be cached because every epoch has new views, or because
            the loss needs features.
        CacheError: there is no room for them.
    """
    config = resolve_config(config).model_copy(update={"pixel_cache": "on", "teacher_cache": "on"})
    if config.teacher_model is None:
        raise ConfigError("teacher_model is None: name the teacher whose outputs are to be cached.")
    if config.hint > 0:
        raise ConfigError("hint is above 0: it needs the teacher's features, which are not cached; leave hint out.")
    if config.augment and config.augment_views is None:
        raise ConfigError(
            "augment_views is None: every epoch has new views, and no output could be used twice; set augment_views "
            "to a number or to 'warp', or leave augment out."
        )
    with ExitStack() as cleanup:
        runtime = cleanup.enter_context(closing(AcceleratedRuntime(config)))
        loaders = cleanup.enter_context(closing(open_loaders(config, runtime, None, None, None)))
        cleanup.enter_context(log_to_stdout())
        config = with_pixel_range(with_classes(config, loaders), loaders, runtime)
        number_alike(config, loaders)
        teacher = open_teacher(config, None, runtime, distils=config.alpha > 0)
        assert teacher is not None
        prefer_channels_last(runtime, teacher)
        cache_pixels_of(loaders, config, runtime)
        shape = batch_shape(config, loaders.train, None, runtime.world_size)
        config = with_teacher_precision(config, runtime, teacher, shape)
        needs = needs_of_teacher(default_terms(config))
        teachers = build_teachers(config, teacher, loaders.train, loaders.val, runtime, needs)
        cleanup.callback(teachers.close)
        return {
            role: prefill(cached, runtime.device, f"asking the teacher for {role}")
            for role, cached in (("train", teachers.train), ("val", teachers.val))
            if isinstance(cached, CachedTeacher)
        }
