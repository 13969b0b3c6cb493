"""Whether what a teacher answers is kept, and opening the memory that keeps it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attention_transfer.cache.folder import cache_folder
from attention_transfer.cache.records import Records
from attention_transfer.cache.room import check_room
from attention_transfer.config import Config
from attention_transfer.errors import CacheError
from attention_transfer.networks.registry import network_name
from attention_transfer.teacher.fingerprint import answers_identity
from attention_transfer.teacher.grid import find_grids
from attention_transfer.teacher.looking import TeacherRunner
from attention_transfer.teacher.looks import Looks, TheSamePixels, WholeImages
from attention_transfer.teacher.memory import AnswerMemory, AnswerShape, memory_paths, memory_size
from attention_transfer.teacher.probe import agrees
from attention_transfer.teacher.remembered import RememberedTeacher
from attention_transfer.training.lesson import Lesson
from attention_transfer.training.runtime import Runtime
from attention_transfer.training.setup import together

logger = logging.getLogger(__name__)

PROBED_IMAGES = 8


def probed_images(lesson: Lesson, device: torch.device) -> Tensor:
    """Some whole images of the lesson, to find out about the teacher with."""
    return lesson.dataset.whole(range(min(PROBED_IMAGES, len(lesson.dataset)))).to(device)


def remember(
    lesson: Lesson, config: Config, teacher: nn.Module, runner: TeacherRunner, runtime: Runtime
) -> RememberedTeacher:
    """The teacher around its memory, if settings and disk allow one; every process must call this together.

    Where nothing is kept it answers just the same, rounded as if it were: so a run does not depend on the disk.

    Raises:
        CacheError: teacher_cache is 'on', and the answers cannot be kept.
    """
    images = probed_images(lesson, runtime.device)
    looks = _looks(lesson, teacher, runner, images)
    shape = _shape(runner, images, config)
    if config.teacher_cache == "off":
        logger.info("the teacher runs on the %s images in every epoch: teacher_cache is 'off'", lesson.role)
        return RememberedTeacher(runner, looks, shape)
    place = _Place(lesson, config, looks.count, shape, _identity(lesson, config, teacher, runner, runtime))
    memory = together(runtime, lambda: _make(place, teacher, runner, looks) if runtime.is_local_main else None)
    if not runtime.is_local_main:
        memory = place.open_if_there()
    if not all(runtime.from_all(memory is not None)):
        memory = None
    if memory is not None:
        _say_what_is_kept(memory, lesson, looks, place.folder)
    return RememberedTeacher(runner, looks, shape, memory)


@dataclass(frozen=True)
class _Place:
    """Where the answers to a lesson are, or would be, kept."""

    lesson: Lesson
    config: Config
    rows: int
    shape: AnswerShape
    identity: str

    @property
    def folder(self) -> Path:
        return cache_folder(self.config.cache_dir)

    @property
    def paths(self) -> list[Path]:
        return list(memory_paths(self.folder, self.identity)[: 1 if self.shape.logits is None else 2])

    def open_if_there(self) -> AnswerMemory | None:
        if not all(path.exists() for path in self.paths):
            return None
        return AnswerMemory.open(self.folder, self.identity, self.rows, self.shape)

    def needed(self) -> int:
        """Bytes of the files that are not there yet."""
        without_logits = replace(self.shape, logits=None)
        maps = memory_size(self.rows, without_logits)
        sizes = [maps, memory_size(self.rows, self.shape) - maps]
        return sum(size for path, size in zip(self.paths, sizes, strict=False) if not path.exists())


def _looks(lesson: Lesson, teacher: nn.Module, runner: TeacherRunner, images: Tensor) -> Looks:
    if lesson.views == "warp":
        return WholeImages(lesson.dataset, find_grids(teacher, images[:1], runner.names))
    return TheSamePixels(lesson.dataset, lesson.views if isinstance(lesson.views, int) else 1)


def _shape(runner: TeacherRunner, images: Tensor, config: Config) -> AnswerShape:
    maps, logits = runner.look(images[:1])
    sizes = tuple((stage.shape[1], stage.shape[2]) for stage in maps)
    return AnswerShape(sizes, None if logits is None else logits.shape[1], config.map_precision)


def _identity(lesson: Lesson, config: Config, teacher: nn.Module, runner: TeacherRunner, runtime: Runtime) -> str:
    return answers_identity(
        teacher,
        runner.names,
        lesson.dataset,
        lesson.dataset.digest(hash_files=config.hash_files),
        views=lesson.views,
        precision=config.teacher_precision,
        folded=runner.is_folded,
        chunk=runner.chunk,
        device=runtime.device.type,
        memory_format=str(runner.memory_format),
        map_precision=config.map_precision,
    )


def _make(place: _Place, teacher: nn.Module, runner: TeacherRunner, looks: Looks) -> AnswerMemory | None:
    """Open the memory, or make it; None where it cannot be, and need not be."""
    config, lesson = place.config, place.lesson
    is_auto = config.teacher_cache == "auto"
    try:
        needed = place.needed()
        if is_auto and needed and not lesson.repeats:
            raise CacheError("no answer would be used twice")
        # What is open is not removed to make room: so what is there is opened first.
        held = [Records(path, place.identity) for path in place.paths if path.exists()]
        check_room(place.folder, needed, config.cache_limit, spares_disk=is_auto)
        memory = AnswerMemory.open(place.folder, place.identity, place.rows, place.shape, _about(lesson, teacher))
        del held
        _forget_what_is_wrong(memory, runner, looks, config.teacher_precision)
    except OSError as error:
        if not is_auto:
            raise
        logger.info("the teacher runs on the %s images in every epoch: %s", lesson.role, error)
        return None
    return memory


def _about(lesson: Lesson, teacher: nn.Module) -> dict[str, object]:
    """What a person is told of a memory."""
    return {
        "data": str(Path(lesson.dataset.samples[0].path).parents[1]),
        "split": lesson.role,
        "teacher": network_name(teacher),
        "images": len(lesson.dataset),
        "views": lesson.views,
        "image size": lesson.dataset.image_size,
    }


def _forget_what_is_wrong(memory: AnswerMemory, runner: TeacherRunner, looks: Looks, precision: str) -> None:
    """Empty a memory that does not say what the teacher says."""
    if agrees(memory, runner, looks, precision):
        return
    if not memory.is_writable:
        raise CacheError(
            f"{memory.maps.path} does not say what the teacher says, and must not be written to; set cache_dir to "
            "another folder."
        )
    logger.warning(
        "%s does not say what the teacher says, and is filled anew: did the code of the network change, or the images "
        "behind equal sizes and times?",
        memory.maps.path.name,
    )
    memory.clear()


def _say_what_is_kept(memory: AnswerMemory, lesson: Lesson, looks: Looks, folder: Path) -> None:
    known, when = int(np.count_nonzero(memory.present())), lesson.teacher_epochs
    if known == looks.count:
        when = "not at all, for all of them are there already"
    elif known:
        when += f", {known:,} of {looks.count:,} being there already"
    also = ""
    if lesson.views == "warp":
        also = "; changes of colour are not heard by it, and the logits of KD are the whole image's"
    if not memory.is_writable:
        also += "; the memory is read-only, so that what it lacks is not kept"
    logger.info(
        "the teacher's answers to the %s images are kept in %s (%.1f MB): it runs %s%s",
        lesson.role, folder, memory.size / 1e6, when, also,
    )  # fmt: skip
