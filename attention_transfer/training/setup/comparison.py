"""What a run compares: which stages of student and teacher, at what sizes, and what each pair weighs at the start."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from attention_transfer.config import Config
from attention_transfer.distributed import Runtime
from attention_transfer.features.pairing import StagePair
from attention_transfer.features.stages.choose import Stages, choose_stages, split_layers
from attention_transfer.features.stages.stage import Stage, in_words
from attention_transfer.losses.attention import AttentionTransfer
from attention_transfer.losses.term import LossTerm
from attention_transfer.modules import like_weights
from attention_transfer.networks.preprocessing import preprocessing_of
from attention_transfer.training.checkpointing.state import STUDENT_STAGES, TEACHER_STAGES
from attention_transfer.training.setup.terms import first_inputs

logger = logging.getLogger(__name__)

FEW_IMAGES = 8
_FEW_CELLS = 0.02
_MOST_OF_THE_ENERGY = 0.5
_LEAST_CELLS = 49


@dataclass(frozen=True)
class Comparison:
    """The stages that a run compares.

    Attributes:
        student: its stages.
        teacher: its stages.
        pairs: indices of stages, and the sizes at which they are compared.
        shares: of each pair in the initial attention loss, in [0, 1]; empty if that is 0.
        concentrated: stages of the teacher, by index, a few cells of which hold most of the energy.
    """

    student: Stages
    teacher: Stages
    pairs: tuple[StagePair, ...]
    shares: tuple[float, ...] = ()
    concentrated: tuple[int, ...] = ()

    @property
    def recipe(self) -> dict[str, str]:
        """The choice in words, as a checkpoint keeps it."""
        return {STUDENT_STAGES: in_words(self.student.stages), TEACHER_STAGES: in_words(self.teacher.stages)}

    def lines(self) -> list[str]:
        """A line for each pair, and for what is left out."""
        lines = []
        for i, pair in enumerate(self.pairs):
            share = f", {100 * self.shares[i]:.0f} % of the initial attention loss" if self.shares else ""
            mine, theirs = self.student.stages[pair.student], self.teacher.stages[pair.teacher]
            lines.append(f"{mine.label} with the teacher's {theirs.label} at {pair.size[0]}x{pair.size[1]}{share}")
        for role, stages, used in (
            ("the student", self.student.stages, {pair.student for pair in self.pairs}),
            ("the teacher", self.teacher.stages, {pair.teacher for pair in self.pairs}),
        ):
            left = [stage.label for i, stage in enumerate(stages) if i not in used]
            if left:
                lines.append(f"not compared of {role}: {', '.join(left)}")
        return lines

    def warnings(self) -> list[str]:
        """Sentences on stages of the teacher whose attention lies in a few cells."""
        return [
            f"a few tokens hold most of the energy of the teacher's {self.teacher.stages[i].name}, as in vision "
            "transformers without registers (Darcet et al. 2023): its attention says little about the image; compare "
            "shallower blocks by the key 'layers', or take a teacher with registers"
            for i in self.concentrated
        ]


def compare(
    config: Config,
    terms: Sequence[LossTerm],
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    runtime: Runtime,
) -> Comparison | None:
    """What AT compares in a run, as a first pass over some images shows.

    Args:
        config: uses layers.
        terms: the loss terms of the run.
        student: on the device; left unchanged.
        teacher: likewise.
        images: some [B, C, H, W] of the run.
        runtime: gives the device.

    Returns:
        the comparison; None where no maps of stages are compared.

    Raises:
        ConfigError: there are more or fewer stage_weights than compared pairs; or, with beta > 0, no pair at all.
    """
    term = next((each for each in terms if isinstance(each, AttentionTransfer)), None)
    if term is None or not (term.needs.stages or term.stage_weights):
        return None
    inputs = first_inputs([term], config, student, teacher, images[:FEW_IMAGES], runtime)
    if term.is_silent(inputs) or not inputs.pairs:
        return None
    mine, theirs = split_layers(config.layers)
    some = images[:1].to(runtime.device)
    stages = choose_stages(student, like_weights(some, student), mine)
    seen = preprocessing_of(teacher, config, some)(some)
    of_teacher = choose_stages(teacher, like_weights(seen, teacher), theirs)
    maps = inputs.teacher.maps(term.map_function)
    shares = _shares(term(inputs), term.stage_weights)
    return Comparison(stages, of_teacher, inputs.pairs, shares, tuple(_concentrated(of_teacher.stages, maps)))


def compared_stages(
    config: Config,
    terms: Sequence[LossTerm],
    student: nn.Module,
    teacher: nn.Module | None,
    images: Tensor | None,
    runtime: Runtime,
) -> dict[str, str]:
    """What the run compares, logged in the main process; the choice in words, for the run's recipe.

    The arguments are those of `compare`; without a teacher or images nothing is known, and the choice is empty.
    """
    comparison = None
    if teacher is not None and images is not None:
        comparison = compare(config, terms, student, teacher, images, runtime)
    if comparison is None:
        return {}
    if runtime.is_main:
        log_comparison(comparison)
    return comparison.recipe


def _shares(scalars: Mapping[str, Tensor], weights: Sequence[float] | None) -> tuple[float, ...]:
    stages = [float(value) for name, value in scalars.items() if name.startswith("attention_stage_")]
    if weights is not None:
        stages = [weight * value for weight, value in zip(weights, stages, strict=True)]
    total = sum(stages)
    return tuple(value / total for value in stages) if total > 0 else ()


def _concentrated(stages: Sequence[Stage], maps: Sequence[Tensor]) -> list[int]:
    pairs = enumerate(zip(stages, maps, strict=True))
    return [i for i, (stage, x) in pairs if stage.readout.name.startswith("tokens") and _is_concentrated(x)]


def _is_concentrated(maps: Tensor) -> bool:
    """Whether the strongest fiftieth of the cells of maps [B, H, W] holds over half of their energy, in the mean."""
    cells = maps.flatten(1).float()
    if cells.shape[1] < _LEAST_CELLS:
        return False
    count = max(1, round(_FEW_CELLS * cells.shape[1]))
    strongest = cells.topk(count, dim=1).values.sum(dim=1)
    return bool((strongest / cells.sum(dim=1).clamp(min=1e-12)).mean() > _MOST_OF_THE_ENERGY)


def log_comparison(comparison: Comparison) -> None:
    """Log what is compared, and warn where it says little."""
    for line in comparison.lines():
        logger.info("attention: %s", line)
    for sentence in comparison.warnings():
        logger.warning("%s", sentence)
