"""Whether what a teacher answers is kept, and opening the memory that keeps it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attention_transfer.cache.folder import cache_folder, free_bytes, make_room, network_file_system
from attention_transfer.config import Config
from attention_transfer.data.identity import samples_digest
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

logger = logging.getLogger(__name__)

PROBED_IMAGES = 8


def probed_images(lesson: Lesson, device: torch.device) -> Tensor:
    """Some whole images of the lesson, to find out about the teacher with."""
    return lesson.dataset.whole(range(min(PROBED_IMAGES, len(lesson.dataset)))).to(device)


def remember(
    lesson: Lesson, config: Config, teacher: nn.Module, runner: TeacherRunner, runtime: Runtime
) -> RememberedTeacher | None:
    """The teacher around its memory, as the settings and the disk allow; None: it has to look each time.

    With views='warp' there always is one, because only it can make the answers to views out of those to whole images.

    Raises:
        CacheError: teacher_cache is 'on', and the answers cannot be kept.
    """
    images = probed_images(lesson, runtime.device)
    looks = _looks(lesson, teacher, runner, images)
    shape = _shape(runner, images, config)
    memory = None
    if config.teacher_cache != "off":
        memory = _open_memory(lesson, config, teacher, runner, looks, shape, runtime)
    if memory is None and lesson.views != "warp":
        return None
    return RememberedTeacher(runner, looks, shape, memory)


def _looks(lesson: Lesson, teacher: nn.Module, runner: TeacherRunner, images: Tensor) -> Looks:
    if lesson.views == "warp":
        return WholeImages(lesson.dataset, find_grids(teacher, images[:1], runner.names))
    return TheSamePixels(lesson.dataset, lesson.views if isinstance(lesson.views, int) else 1)


def _shape(runner: TeacherRunner, images: Tensor, config: Config) -> AnswerShape:
    maps, logits = runner.look(images[:1])
    sizes = tuple((stage.shape[1], stage.shape[2]) for stage in maps)
    return AnswerShape(sizes, None if logits is None else logits.shape[1], config.map_precision)


def _open_memory(
    lesson: Lesson,
    config: Config,
    teacher: nn.Module,
    runner: TeacherRunner,
    looks: Looks,
    shape: AnswerShape,
    runtime: Runtime,
) -> AnswerMemory | None:
    folder = cache_folder(config.cache_dir)
    identity = answers_identity(
        teacher,
        runner.names,
        lesson.dataset,
        samples_digest(lesson.dataset.samples, hash_files=config.hash_files),
        views=lesson.views,
        precision=config.teacher_precision,
        folded=runner.is_folded,
        chunk=runner.chunk,
        device=runtime.device.type,
        memory_format=str(runner.memory_format),
        map_precision=config.map_precision,
    )
    why_not = _why_not(lesson, config, folder, identity, looks.count, shape) if runtime.is_main else None
    why_not = runtime.from_main(why_not)
    if why_not is not None:
        if config.teacher_cache == "on":
            raise CacheError(why_not)
        logger.info("the teacher runs on the %s images in every epoch: %s", lesson.role, why_not)
        return None
    memory = AnswerMemory.open(folder, identity, looks.count, shape, _about(lesson, teacher))
    _forget_what_is_wrong(memory, runner, looks, runtime)
    _say_what_is_kept(memory, lesson, looks, folder)
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


def _why_not(lesson: Lesson, config: Config, folder: Path, identity: str, rows: int, shape: AnswerShape) -> str | None:
    """Why the answers cannot be kept; None where they can. Room is made for them."""
    paths = memory_paths(folder, identity)
    missing = [path for path in paths[: 1 if shape.logits is None else 2] if not path.exists()]
    if not missing:
        return None
    is_auto, needed = config.teacher_cache == "auto", memory_size(rows, shape)
    if is_auto and not lesson.repeats:
        return "no answer would be used twice"
    network = network_file_system(folder)
    if network is not None:
        return (
            f"{folder} is on a network file system ({network}), where shared memory maps may tear; set cache_dir to a "
            "local disk."
        )
    free = free_bytes(folder)
    if is_auto and needed > free / 2:
        return (
            f"its answers take {needed / 1e6:,.0f} MB, more than half of the {free / 1e6:,.0f} MB that are free in "
            f"{folder}; make room, or set cache_dir to another disk."
        )
    try:
        make_room(folder, needed, config.cache_limit)
    except CacheError as error:
        return str(error)
    return None


def _forget_what_is_wrong(memory: AnswerMemory, runner: TeacherRunner, looks: Looks, runtime: Runtime) -> None:
    """Empty a memory that does not say what the teacher says."""
    if runtime.from_main(agrees(memory, runner, looks) if runtime.is_main else None):
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
    if runtime.is_main:
        memory.clear()
    runtime.from_main(None)


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
