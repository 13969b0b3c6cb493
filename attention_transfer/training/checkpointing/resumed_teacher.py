"""A run goes on with the teacher that it had, which sees of the images what it saw."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from attention_transfer.config import Config
from attention_transfer.errors import TeacherError
from attention_transfer.networks.preprocessing import sees
from attention_transfer.training.checkpointing.resume import ResumePoint
from attention_transfer.training.checkpointing.state import TEACHERS_IMAGES


def teacher_recipe(teacher: nn.Module | None, config: Config) -> dict[str, str]:
    """What the teacher sees of the images, in words, as a checkpoint keeps it; empty without a teacher.

    Args:
        teacher: the network, or None.
        config: uses mean, std, teacher_mean, teacher_std and teacher_image_size.
    """
    return {} if teacher is None else {TEACHERS_IMAGES: sees(teacher, config)}


def refuse_another_teacher(digest: str | None, recipe: Mapping[str, str], point: ResumePoint) -> None:
    """Refuse to resume a run with another teacher, or one that sees the images otherwise.

    Args:
        digest: of the teacher's weights; None without a teacher.
        recipe: what it sees, see `teacher_recipe`.
        point: what is resumed.

    Raises:
        TeacherError: the weights or the images differ; has both.
    """
    training = None if point.checkpoint is None else point.checkpoint["training"]
    if training is None:
        return
    if digest != training["teacher_digest"]:
        raise TeacherError(
            f"{point.source} was trained with {_in_words(training['teacher_digest'])}, but this run has "
            f"{_in_words(digest)}; pass the same teacher, or start a new run."
        )
    there = training.get("recipe", {}).get(TEACHERS_IMAGES)  # earlier checkpoints do not have it
    here = recipe.get(TEACHERS_IMAGES)
    if there is not None and there != here:
        raise TeacherError(
            f"the teacher of {point.source} saw {there}, but in this run it would see {here}: set teacher_mean, "
            "teacher_std and teacher_image_size to what it saw, load it from the same file, or start a new run."
        )


def _in_words(digest: str | None) -> str:
    return "no teacher" if digest is None else f"a teacher whose weights have the hash {digest[:12]}"
