"""The student and the teacher of a run."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn

from attention_transfer.catalogue import is_path
from attention_transfer.config import Config
from attention_transfer.data.frame import as_frame
from attention_transfer.distributed import Runtime
from attention_transfer.errors import ConfigError
from attention_transfer.modules import refuse_data_parallel, unwrapped
from attention_transfer.networks.class_lists import students_classes
from attention_transfer.networks.libraries import ignore_auxiliary_heads
from attention_transfer.networks.preprocessing import size_to_build_for
from attention_transfer.networks.registry import card_of, create_model
from attention_transfer.teacher.classes import match_teacher
from attention_transfer.teacher.loading import load_teacher_model
from attention_transfer.training.checkpointing.state import check_can_be_kept
from attention_transfer.training.setup.idle_settings import warn_of_idle_loss_settings
from attention_transfer.training.setup.start.initial_weights import load_initial_weights, network_in

logger = logging.getLogger(__name__)


def open_student(config: Config, student: nn.Module | None, *, begins: bool = True) -> nn.Module:
    """The user's module, or a new network by name, with the names of its classes.

    Args:
        config: uses model, weights, init_from, num_classes and class_names.
        student: the user's module, or None.
        begins: the run is a new one, which init_from is for.

    Raises:
        CheckpointError: the state of the user's module cannot be stored in a checkpoint, or init_from does not fit.
        ConfigError: weights and init_from are both set.
    """
    if config.init_from is not None and config.weights is not None and begins:
        raise ConfigError(
            f"weights is {config.weights!r} and init_from {config.init_from!r}: the student can begin with the one or "
            "the other; leave one out."
        )
    network = _student(config, student, begins=begins)
    if config.init_from is not None and begins:
        load_initial_weights(network, config, config.init_from)
    if config.weights is not None and begins and student is None and is_path(config.weights):
        load_initial_weights(network, config, config.weights, "weights")
    return network


def with_named_student(config: Config) -> Config:
    """The settings with the student's network by name, where the setting `model` is a file: it begins with its weights.

    Raises:
        CheckpointError: the file fits no registered network, or several.
        ConfigError: the setting `weights` is set, too.
    """
    if not is_path(config.model):
        return config
    if config.weights is not None:
        raise ConfigError(
            f"model is the file {config.model!r}, and weights is {config.weights!r}: the student can begin with one of "
            "them; leave weights out, or name the network in model."
        )
    return config.model_copy(update={"model": network_in(config.model), "weights": config.model})


def _student(config: Config, student: nn.Module | None, *, begins: bool) -> nn.Module:
    if student is not None:
        refuse_data_parallel(student)
        check_can_be_kept(student)
        ignore_auxiliary_heads(unwrapped(student))
        return student
    assert config.num_classes is not None
    size = as_frame(config.image_size).size
    # a run that goes on has its own weights, and needs no others to be fetched
    published = None if config.weights is None or is_path(config.weights) or not begins else config.weights
    network = create_model(config.model, config.num_classes, weights=published, image_size=size)
    card = card_of(network)
    assert card is not None
    network.card = replace(card, class_names=config.class_names)  # type: ignore[assignment]
    return network


def open_teacher(config: Config, teacher: nn.Module | None, runtime: Runtime, *, distils: bool) -> nn.Module | None:
    """The user's module, or the network that teacher_model names; checked against the student's classes.

    Args:
        config: uses the teacher's settings, alpha, beta, num_classes and class_names.
        teacher: the user's module, or None.
        runtime: gives the device.
        distils: whether the teacher's logits are used.

    Returns:
        the teacher, on the device; None without one.

    Raises:
        ConfigError: alpha > 0 without a teacher.
        TeacherError: the teacher cannot be loaded, or alpha > 0 and its classes are not the student's.
    """
    if teacher is None and config.teacher_model is not None:
        teacher = load_teacher_model(
            config.teacher_model,
            config.num_classes,
            runtime.device,
            teacher_arch=config.teacher_arch,
            teacher_key=config.teacher_key,
            image_size=size_to_build_for(config),
        )
    if teacher is None:
        if config.alpha > 0:
            raise ConfigError(
                f"alpha is {config.alpha:g}, but there is no teacher to distil from; set teacher_model, pass "
                "teacher=..., or set alpha=0."
            )
        logger.info("there is no teacher: the student is trained with cross-entropy alone")
        return None
    match_teacher(teacher, students_classes(config), distils=distils)
    warn_of_idle_loss_settings(config)
    return teacher.to(runtime.device)


def prefer_channels_last(runtime: Runtime, *networks: nn.Module | None) -> None:
    """Use the channels-last memory format for weights and images, which is faster on CPUs and GPUs alike.

    Networks of ours support it. A user's module may not (x.view after a convolution raises), so with one of those the
    whole run uses PyTorch's default format.
    """
    present = [network for network in networks if network is not None]
    if all(card_of(network) is not None for network in present):
        runtime.memory_format = torch.channels_last
        for network in present:
            network.to(memory_format=torch.channels_last)
