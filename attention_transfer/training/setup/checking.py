"""Checks before the first step that the networks can be trained, and can take the images."""

from __future__ import annotations

from torch import Tensor, nn

from attention_transfer.data.loading.user_loaders import warn_of_unusual_values
from attention_transfer.errors import ConfigError
from attention_transfer.modules import unwrapped
from attention_transfer.networks.input_shapes import TEACHER, find_misfit
from attention_transfer.networks.registry import taps_of
from attention_transfer.seeding import random_state, restore_random_state


def check_trainable(student: nn.Module) -> None:
    """Refuse a student without trainable parameters.

    Raises:
        ConfigError: it has no parameters, or all of them are frozen.
    """
    parameters = list(student.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        return
    name = type(unwrapped(student)).__name__
    if not parameters:
        raise ConfigError(f"there is nothing to train: the student {name} has no parameters.")
    raise ConfigError(
        f"there is nothing to train: all {len(parameters)} parameters of the student {name} are frozen; set "
        "requires_grad to True, as student.requires_grad_(True) does, for those that are to learn."
    )


def check_fit(
    student: nn.Module, teacher: nn.Module | None, images: Tensor, seen: Tensor | None = None, *, ours: bool = False
) -> None:
    """Check that student and teacher can take the images.

    Each runs once on one image, in eval mode; networks and random generators are left unchanged.

    Args:
        student: the network to train.
        teacher: or None.
        images: some [B, C, H, W] of the run, on the networks' device.
        seen: the same [B, C, H, W] as the teacher sees them; None: as they are.
        ours: the images are from our own loaders, which networks of ours can always take.

    Raises:
        DataError: the student cannot take them; names layer, shapes and the remedy.
        TeacherError: the teacher cannot.
    """
    before = random_state()
    try:
        for role, network, given in (
            ("student", student, images),
            (TEACHER, teacher, images if seen is None else seen),
        ):
            if network is None or (ours and taps_of(network) is not None):
                continue
            misfit = find_misfit(network, given, role)
            if misfit is not None:
                raise misfit
    finally:
        restore_random_state(before)


def check_first_images(
    student: nn.Module, teacher: nn.Module | None, images: Tensor, seen: Tensor, *, ours: bool
) -> None:
    """Check a first batch of images before training; see `check_fit` and `warn_of_unusual_values`.

    Args:
        student: the network to train.
        teacher: or None.
        images: [B, C, H, W], on the networks' device.
        seen: the same [B, C, H, W] as the teacher sees them.
        ours: the images are from our own loaders.

    Raises:
        DataError, TeacherError: a network cannot take them.
    """
    if not ours:
        warn_of_unusual_values(images)
    check_fit(student, teacher, images, seen, ours=ours)
