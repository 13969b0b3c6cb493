"""Opening a teacher's cache, where settings and disk allow one."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attention_transfer.cache.disk_space import check_disk_space
from attention_transfer.cache.folder import cache_folder
from attention_transfer.cache.records import Records
from attention_transfer.config import Config
from attention_transfer.distributed import Runtime, all_or_raise
from attention_transfer.errors import CacheError, ConfigError
from attention_transfer.features.maps import ATTENTION, FEATURES
from attention_transfer.features.signals import TeacherOutput
from attention_transfer.kernels import card_identity
from attention_transfer.logs import log_once
from attention_transfer.networks.registry import network_name
from attention_transfer.teacher.cache.grid import Grid, find_grids
from attention_transfer.teacher.cache.identity import cache_identity
from attention_transfer.teacher.cache.index import CacheIndex, ViewIndex, WarpIndex
from attention_transfer.teacher.cache.plan import CachePlan
from attention_transfer.teacher.cache.store import OutputShape, TeacherCache, cache_paths, cache_size
from attention_transfer.teacher.cache.teacher import CachedTeacher
from attention_transfer.teacher.cache.verify import matches_teacher
from attention_transfer.teacher.runner import FrozenRunner

logger = logging.getLogger(__name__)

PROBED_IMAGES = 8


def probed_images(plan: CachePlan, device: torch.device) -> Tensor:
    """A few whole images [n, 3, H, W] of the plan's data set, on which the teacher is probed."""
    return plan.dataset.whole(range(min(PROBED_IMAGES, len(plan.dataset)))).to(device)


def open_cache(
    plan: CachePlan, config: Config, teacher: nn.Module, runner: FrozenRunner, runtime: Runtime
) -> CachedTeacher:
    """The cached teacher, with a cache if settings and disk allow one; every process must call this together.

    The caller closes it. Without a cache its outputs are rounded as if they were stored, so that a run does not depend
    on the disk.

    Args:
        plan: the data set, its views and the number of epochs.
        config: the settings of the cache, hash_files, teacher_precision and map_precision are used.
        teacher: the network, unfolded.
        runner: runs it.
        runtime: gives device and processes.

    Raises:
        CacheError: teacher_cache is 'on', and the cache cannot be written.
    """
    images = probed_images(plan, runtime.device)
    output = runner.run(images[:1], torch.zeros(1, dtype=torch.int64, device=images.device))
    if plan.views == "warp":
        check_under_warp(output)
    index = _index(plan, teacher, runner, images)
    shape = OutputShape.of(output, runner.needs.maps, config.map_precision)
    if config.teacher_cache == "off":
        logger.info("the teacher runs on the %s images in every epoch: teacher_cache is 'off'", plan.role)
        return CachedTeacher(runner, index, shape)
    location = _CacheLocation(plan, config, index.count, shape, _identity(plan, config, teacher, runner, runtime))
    cached = CachedTeacher(runner, index, shape)
    with ExitStack() as opened:
        opened.callback(cached.close)

        def make() -> None:
            cached.cache = _open_or_create(location, teacher, runner, index) if runtime.is_local_main else None

        all_or_raise(runtime, make)
        if not runtime.is_local_main:
            cached.cache = location.open_if_exists()
        if not all(runtime.all_gather_object(cached.cache is not None)):
            return cached
        assert cached.cache is not None
        _log_cache(cached.cache, plan, index, location.folder)
        opened.pop_all()
    return cached


@dataclass(frozen=True)
class _CacheLocation:
    """The files of the cache for a plan, whether they exist or not."""

    plan: CachePlan
    config: Config
    rows: int
    shape: OutputShape
    identity: str

    @property
    def folder(self) -> Path:
        return cache_folder(self.config.cache_dir)

    @property
    def paths(self) -> list[Path]:
        return list(cache_paths(self.folder, self.identity)[: 1 if self.shape.logits is None else 2])

    def open_if_exists(self) -> TeacherCache | None:
        if not all(path.exists() for path in self.paths):
            return None
        return TeacherCache.open(self.folder, self.identity, self.rows, self.shape)

    def needed(self) -> int:
        """Bytes of the files that do not exist yet."""
        without_logits = replace(self.shape, logits=None)
        maps = cache_size(self.rows, without_logits)
        sizes = [maps, cache_size(self.rows, self.shape) - maps]
        return sum(size for path, size in zip(self.paths, sizes, strict=False) if not path.exists())


def _index(plan: CachePlan, teacher: nn.Module, runner: FrozenRunner, images: Tensor) -> CacheIndex:
    if plan.views == "warp":
        return WarpIndex(plan.dataset, plan.labels, _grids(teacher, runner, images))
    return ViewIndex(plan.dataset, plan.labels, plan.views if isinstance(plan.views, int) else 1)


def _grids(teacher: nn.Module, runner: FrozenRunner, images: Tensor) -> list[Grid]:
    """The grid of each map, by each map function in turn."""
    layout = runner.layout
    patches = [] if layout is None else [layout.grid] * len(layout.names)
    seen = runner.preprocess(images[:1])
    scale = images.shape[2] / seen.shape[2], images.shape[3] / seen.shape[3]
    every = [grid.scaled(*scale) for grid in find_grids(teacher, seen, runner.stages, patches)]
    stages = len(runner.stages)
    by_source = {FEATURES: every[:stages], ATTENTION: every[stages:]}
    return [grid for function in runner.needs.maps for grid in by_source[function.of]]


def check_under_warp(output: TeacherOutput) -> None:
    """Check which of a teacher's signals for whole images may stand for those for their views.

    Maps are warped. Of any other signal that does not hold for a view, one line in the log says that it is compared
    all the same.

    Args:
        output: of the teacher.

    Raises:
        ConfigError: a signal depends on the label, and so on the loss at the very pixels of a view.
    """
    for name, signal in output.items():
        if signal.exact_under_warp:
            continue
        if signal.depends_on_label:
            raise ConfigError(
                f"augment_views='warp' cannot be used with {name}: the gradient at a view is not the warped gradient "
                "at the whole image; set augment_views to a number of views, or choose another kind of attention."
            )
        if isinstance(signal.value, Tensor):
            log_once(
                f"augment_views='warp': the teacher's {name} are those of the whole image, not of the view; every term "
                "of the loss that needs them compares the student's view with the whole image"
            )


def _identity(plan: CachePlan, config: Config, teacher: nn.Module, runner: FrozenRunner, runtime: Runtime) -> str:
    return cache_identity(
        teacher,
        runner.stages,
        runner.needs.maps,
        plan.dataset,
        plan.dataset.digest(hash_files=config.hash_files),
        views=plan.views,
        layout=runner.layout,
        labels=runner.own_labels(plan.labels).tolist() if runner.needs.gradient else None,
        precision=config.teacher_precision,
        folded=runner.is_folded,
        chunk=runner.chunk,
        device=runtime.device.type,
        memory_format=str(runner.memory_format),
        map_precision=config.map_precision,
        **card_identity(runtime.device),
        **runner.preprocess.identity,
    )


def _open_or_create(
    location: _CacheLocation, teacher: nn.Module, runner: FrozenRunner, index: CacheIndex
) -> TeacherCache | None:
    """The cache, opened or created; None where that is impossible and teacher_cache is 'auto'."""
    config, plan = location.config, location.plan
    is_auto = config.teacher_cache == "auto"
    try:
        needed = location.needed()
        if is_auto and needed and not plan.repeats:
            raise CacheError("no answer would be used twice")
        with ExitStack() as held:
            # Open files are not evicted to make room, so the existing ones are opened first.
            for path in location.paths:
                if path.exists():
                    held.enter_context(Records(path, location.identity))
            check_disk_space(location.folder, needed, config.cache_limit, spares_disk=is_auto)
            cache = TeacherCache.open(
                location.folder, location.identity, location.rows, location.shape, _about(plan, teacher)
            )
        with ExitStack() as opened:
            opened.enter_context(cache)
            _clear_if_stale(cache, runner, index, config.teacher_precision)
            opened.pop_all()
    except OSError as error:
        if not is_auto:
            raise
        logger.info("the teacher runs on the %s images in every epoch: %s", plan.role, error)
        return None
    return cache


def _about(plan: CachePlan, teacher: nn.Module) -> dict[str, object]:
    """A description of the cache for people, stored in its files."""
    return {
        "data": plan.dataset.source.place,
        "split": plan.role,
        "teacher": network_name(teacher),
        "images": len(plan.dataset),
        "views": plan.views,
        "image size": plan.dataset.image_size,
    }


def _clear_if_stale(cache: TeacherCache, runner: FrozenRunner, index: CacheIndex, precision: str) -> None:
    """Empty a cache whose contents are not what the teacher puts out."""
    if matches_teacher(cache, runner, index, precision):
        return
    if not cache.is_writable:
        raise CacheError(
            f"{cache.maps.path} does not hold what the teacher puts out, and must not be written to; set cache_dir to "
            "another folder."
        )
    logger.warning(
        "%s does not say what the teacher says, and is filled anew: did the code of the network change, or the images "
        "behind equal sizes and times?",
        cache.maps.path.name,
    )
    cache.clear()


def _log_cache(cache: TeacherCache, plan: CachePlan, index: CacheIndex, folder: Path) -> None:
    present, when = int(np.count_nonzero(cache.present())), plan.teacher_epochs
    if present == index.count:
        when = "not at all, for all of them are there already"
    elif present:
        when += f", {present:,} of {index.count:,} being there already"
    also = ""
    if plan.views == "warp":
        also = "; changes of colour do not reach it"
    if not cache.is_writable:
        also += "; the memory is read-only, so that what it lacks is not kept"
    logger.info(
        "the teacher's answers to the %s images are kept in %s (%.1f MB): it runs %s%s",
        plan.role, folder, cache.size / 1e6, when, also,
    )  # fmt: skip
