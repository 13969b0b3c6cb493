"""Checking and building the loss terms of a run: alpha KD, beta AT, and the user's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attention_transfer.config import Config
from attention_transfer.data.batches import Batch
from attention_transfer.distributed import Runtime
from attention_transfer.errors import ConfigError
from attention_transfer.losses.labels import refuse_mixed_labels
from attention_transfer.losses.term import RESERVED, LossInputs, LossTerm
from attention_transfer.losses.total import needs_of_teacher
from attention_transfer.modules import undisturbed, unwrapped
from attention_transfer.networks.class_lists import students_classes
from attention_transfer.teacher.build import make_teacher
from attention_transfer.teacher.classes import match_logits
from attention_transfer.training.criterion.criterion import Criterion

FEW_IMAGES = 2


def check_are_terms(terms: Sequence[object]) -> None:
    """Refuse objects of another class.

    Raises:
        ConfigError: one of `terms` is no `LossTerm`.
    """
    for term in terms:
        if not isinstance(term, LossTerm):
            raise ConfigError(
                f"terms has a {type(term).__name__}; each must be an instance of a subclass of "
                "attention_transfer.LossTerm."
            )


def check_terms(
    terms: Sequence[LossTerm], *, has_teacher: bool, is_mixed: bool = False, layers: Sequence[str] | None = None
) -> None:
    """Refuse terms with clashing names, or that need a missing teacher, or one label where images are mixed of two.

    And refuse names of layers that no term looks at.

    Args:
        terms: the loss terms of the run, the default ones first.
        has_teacher: whether there is a teacher.
        is_mixed: whether images are mixed of two.
        layers: the setting.

    Raises:
        ConfigError: an object that is no term, a duplicate or reserved name, or a term with weight > 0 that needs a
            teacher where there is none, or labels where images are mixed; or layers that no term compares.
    """
    check_are_terms(terms)
    if layers is not None and not any(term.needs.stages for term in terms):
        raise ConfigError(
            f"layers names {', '.join(layers)}, but no term of the loss compares stages (attention='gradient' and "
            "'class_token' look elsewhere); leave layers out."
        )
    if is_mixed:
        refuse_mixed_labels(terms)
    names: set[str] = set()
    for term in terms:
        if term.name in names or term.name in RESERVED:
            raise ConfigError(
                f"the loss term {type(term).__name__} is called {term.name!r}, which is taken; rename it."
            )
        names.add(term.name)
    for term in terms:
        if not has_teacher and term.weight > 0 and term.needs.of_the_teacher and term.name not in ("kd", "attention"):
            raise ConfigError(
                f"the loss term {term.name!r} needs the teacher's {', '.join(term.needs.of_the_teacher)}, but there is "
                "no teacher; set teacher_model, pass teacher=..., or leave the term out."
            )


def build_terms(
    terms: Sequence[LossTerm],
    config: Config,
    student: nn.Module,
    teacher: nn.Module | None,
    images: Tensor | None,
    runtime: Runtime,
) -> None:
    """Build the terms' parameters, from the outputs of a few images, and move them to the device.

    Args:
        terms: the loss terms of the run.
        config: uses beta and layers.
        student: on the device; left unchanged.
        teacher: likewise, or None.
        images: some [B, C, H, W] of the run, or None.
        runtime: gives the device.

    Raises:
        ConfigError: a term must be built, and there are no images to build it with.
    """
    to_build = [term for term in terms if type(term).build is not LossTerm.build]
    if to_build and images is None:
        raise ConfigError(f"the loss term {to_build[0].name!r} is built with a few images; give a val_loader.")
    if to_build and images is not None:
        inputs = first_inputs(terms, config, student, teacher, images[:FEW_IMAGES], runtime)
        for term in to_build:
            term.build(inputs)
    for term in terms:
        term.to(runtime.device)
        # a term may have drawn them before the seed was set, in each process anew
        runtime.align_weights(term)


def first_inputs(
    terms: Sequence[LossTerm],
    config: Config,
    student: nn.Module,
    teacher: nn.Module | None,
    images: Tensor,
    runtime: Runtime,
) -> LossInputs:
    """What the terms get for some images before training: student and teacher run once, in eval mode.

    Args:
        terms: the loss terms of the run.
        config: uses beta and layers.
        student: on the device; left unchanged.
        teacher: likewise, or None.
        images: some [B, C, H, W] of the run.
        runtime: gives the device.
    """
    some = images.to(runtime.device)
    batch = Batch(some, torch.zeros(len(some), dtype=torch.int64, device=runtime.device))
    matched = match_logits(teacher, students_classes(config), distils=needs_of_teacher(terms).logits)
    criterion = Criterion(config, make_teacher(teacher, config, runtime), runtime, terms, matched)
    criterion.teacher = make_teacher(teacher, config, runtime, criterion.needs)
    with undisturbed(unwrapped(student)):
        teacher_output = criterion.ask_teacher(batch)
        output = criterion.observe(student, batch, is_compared=bool(teacher_output))
    pairs, map_pairs = criterion.pairs(output, teacher_output), criterion.map_pairs(output, teacher_output)
    return LossInputs(output, teacher_output, pairs, batch.labels, 0.0, map_pairs)
