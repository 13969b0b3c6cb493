"""Whether what a teacher answers is kept, and opening the memory that keeps it."""

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
from attention_transfer.errors import CacheError
from attention_transfer.networks.registry import network_name
from attention_transfer.teacher.cache.grid import find_grids
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
    """Some whole images of the lesson, to find out about the teacher with."""
    return plan.dataset.whole(range(min(PROBED_IMAGES, len(plan.dataset)))).to(device)


def open_cache(
    plan: CachePlan, config: Config, teacher: nn.Module, runner: FrozenRunner, runtime: Runtime
) -> CachedTeacher:
    """The teacher around its memory, if settings and disk allow one; every process must call this together.

    Whoever asks for it closes it. Where nothing is kept it answers just the same, rounded as if it were: so a run does
    not depend on the disk.

    Raises:
        CacheError: teacher_cache is 'on', and the answers cannot be kept.
    """
    images = probed_images(plan, runtime.device)
    index = _index(plan, teacher, runner, images)
    shape = _shape(runner, images, config)
    if config.teacher_cache == "off":
        logger.info("the teacher runs on the %s images in every epoch: teacher_cache is 'off'", plan.role)
        return CachedTeacher(runner, index, shape)
    place = _Place(plan, config, index.count, shape, _identity(plan, config, teacher, runner, runtime))
    cached = CachedTeacher(runner, index, shape)
    with ExitStack() as opened:
        opened.callback(cached.close)

        def make() -> None:
            cached.cache = _make(place, teacher, runner, index) if runtime.is_local_main else None

        all_or_raise(runtime, make)
        if not runtime.is_local_main:
            cached.cache = place.open_if_there()
        if not all(runtime.all_gather_object(cached.cache is not None)):
            return cached
        assert cached.cache is not None
        _say_what_is_kept(cached.cache, plan, index, place.folder)
        opened.pop_all()
    return cached


@dataclass(frozen=True)
class _Place:
    """Where the answers to a lesson are, or would be, kept."""

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

    def open_if_there(self) -> TeacherCache | None:
        if not all(path.exists() for path in self.paths):
            return None
        return TeacherCache.open(self.folder, self.identity, self.rows, self.shape)

    def needed(self) -> int:
        """Bytes of the files that are not there yet."""
        without_logits = replace(self.shape, logits=None)
        maps = cache_size(self.rows, without_logits)
        sizes = [maps, cache_size(self.rows, self.shape) - maps]
        return sum(size for path, size in zip(self.paths, sizes, strict=False) if not path.exists())


def _index(plan: CachePlan, teacher: nn.Module, runner: FrozenRunner, images: Tensor) -> CacheIndex:
    if plan.views == "warp":
        return WarpIndex(plan.dataset, find_grids(teacher, images[:1], runner.names) * len(runner.needs.maps))
    return ViewIndex(plan.dataset, plan.views if isinstance(plan.views, int) else 1)


def _shape(runner: FrozenRunner, images: Tensor, config: Config) -> OutputShape:
    output = runner.run(images[:1])
    functions, logits = runner.needs.maps, output.logits
    sizes = tuple((stage.shape[1], stage.shape[2]) for function in functions for stage in output.maps(function))
    return OutputShape(sizes, None if logits is None else logits.shape[1], config.map_precision, functions)


def _identity(plan: CachePlan, config: Config, teacher: nn.Module, runner: FrozenRunner, runtime: Runtime) -> str:
    return cache_identity(
        teacher,
        runner.names,
        runner.needs.maps,
        plan.dataset,
        plan.dataset.digest(hash_files=config.hash_files),
        views=plan.views,
        precision=config.teacher_precision,
        folded=runner.is_folded,
        chunk=runner.chunk,
        device=runtime.device.type,
        memory_format=str(runner.memory_format),
        map_precision=config.map_precision,
    )


def _make(place: _Place, teacher: nn.Module, runner: FrozenRunner, index: CacheIndex) -> TeacherCache | None:
    """Open the memory, or make it; None where it cannot be, and need not be."""
    config, plan = place.config, place.plan
    is_auto = config.teacher_cache == "auto"
    try:
        needed = place.needed()
        if is_auto and needed and not plan.repeats:
            raise CacheError("no answer would be used twice")
        with ExitStack() as held:
            # What is open is not removed to make room: so what is there is opened first.
            for path in place.paths:
                if path.exists():
                    held.enter_context(Records(path, place.identity))
            check_disk_space(place.folder, needed, config.cache_limit, spares_disk=is_auto)
            cache = TeacherCache.open(place.folder, place.identity, place.rows, place.shape, _about(plan, teacher))
        with ExitStack() as opened:
            opened.enter_context(cache)
            _forget_what_is_wrong(cache, runner, index, config.teacher_precision)
            opened.pop_all()
    except OSError as error:
        if not is_auto:
            raise
        logger.info("the teacher runs on the %s images in every epoch: %s", plan.role, error)
        return None
    return cache


def _about(plan: CachePlan, teacher: nn.Module) -> dict[str, object]:
    """What a person is told of a memory."""
    return {
        "data": plan.dataset.source.place,
        "split": plan.role,
        "teacher": network_name(teacher),
        "images": len(plan.dataset),
        "views": plan.views,
        "image size": plan.dataset.image_size,
    }


def _forget_what_is_wrong(cache: TeacherCache, runner: FrozenRunner, index: CacheIndex, precision: str) -> None:
    """Empty a memory that does not say what the teacher says."""
    if matches_teacher(cache, runner, index, precision):
        return
    if not cache.is_writable:
        raise CacheError(
            f"{cache.maps.path} does not say what the teacher says, and must not be written to; set cache_dir to "
            "another folder."
        )
    logger.warning(
        "%s does not say what the teacher says, and is filled anew: did the code of the network change, or the images "
        "behind equal sizes and times?",
        cache.maps.path.name,
    )
    cache.clear()


def _say_what_is_kept(cache: TeacherCache, plan: CachePlan, index: CacheIndex, folder: Path) -> None:
    known, when = int(np.count_nonzero(cache.present())), plan.teacher_epochs
    if known == index.count:
        when = "not at all, for all of them are there already"
    elif known:
        when += f", {known:,} of {index.count:,} being there already"
    also = ""
    if plan.views == "warp":
        also = "; changes of colour are not heard by it, and the logits of KD are the whole image's"
    if not cache.is_writable:
        also += "; the memory is read-only, so that what it lacks is not kept"
    logger.info(
        "the teacher's answers to the %s images are kept in %s (%.1f MB): it runs %s%s",
        plan.role, folder, cache.size / 1e6, when, also,
    )  # fmt: skip
