"""The state of a run: one object, which a checkpoint stores. There is no other state."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from attention_transfer.checkpoint import balanced_accuracy_at_best, load_weights
from attention_transfer.class_names import numbers_as_names
from attention_transfer.config import Config
from attention_transfer.distributed import Runtime
from attention_transfer.errors import CheckpointError, DivergenceError
from attention_transfer.modules import unwrapped
from attention_transfer.networks.registry import card_of
from attention_transfer.plain import check_plain
from attention_transfer.seeding import random_state, restore_random_state
from attention_transfer.training.checkpointing.best_epoch import ACCURACY, early_stop, is_better
from attention_transfer.training.epoch_progress import ProgressState, as_progress
from attention_transfer.training.optim.ema import EmaWeights
from attention_transfer.training.optim.schedules import Schedule

EpochRecord = dict[str, float]

STUDENT, EMA = "student", "ema"
"""Whose weights a checkpoint offers to be used: those that are trained, or their average."""

MAP_FUNCTION, UNLABELLED_IMAGES, TEACHERS_IMAGES = "map function", "unlabelled images", "teacher's images"
STUDENT_STAGES, TEACHER_STAGES = "stages of the student", "stages of the teacher"
"""Their keys in a run's recipe."""

COMPARED = (STUDENT_STAGES, TEACHER_STAGES)
OF_ONE_RUN = (MAP_FUNCTION, UNLABELLED_IMAGES, *COMPARED)
"""Parts of a recipe in which a run that starts from a checkpoint may differ from it; one that goes on may not."""

NO_IMAGES = "none"
"""What a recipe has in place of a digest where there are no unlabelled images."""


class Stateful(Protocol):
    """An object whose state is saved in checkpoints: loss terms with parameters of their own, callbacks."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as plain data and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restore such a state."""
        ...


@dataclass
class RunState:
    """The training state of a run: everything needed to resume it elsewhere.

    Attributes:
        config: the resolved configuration.
        student: the network being trained.
        optimizer: over its parameters, and those of the loss terms.
        scheduler: of the learning rate.
        teacher_digest: SHA-256 of the teacher's weights; None without a teacher.
        epoch: completed epochs.
        step: completed batches, over all epochs.
        best_accuracy: validation accuracy of best_epoch, a fraction; without validation the last training accuracy.
        best_epoch: the best so far by the setting best_by, from 1; 0 before the first.
        history: one record per epoch.
        best_weights: the state_dict that best_epoch was measured with, the student's or its EMA's, on the CPU; None
            before the first epoch.
        unfinished: progress of an unfinished epoch; None between two epochs.
        data_digest: hash of names and sizes of the training images; None for a loader of the user's.
        data_classes: class names of the training data, in their order; None if they have none.
        loss_weights: of the loss terms, by name.
        recipe: which optimizer, scheduler and map function the run has, what its teacher sees, and more, by name.
        stateful: further objects whose state is saved, by name.
        class_weights: weight of each class in cross-entropy; None where they have none.
        frozen: names of the student's modules that are not trained.
        ema: the average of the student's weights, or None.
        random_of_ranks: inside an epoch, the random states of all processes but the main one, by rank; between two
            epochs they are not needed, as each begins with a seed of its own.
    """

    config: Config
    student: nn.Module
    optimizer: Optimizer
    scheduler: Schedule
    teacher_digest: str | None = None
    epoch: int = 0
    step: int = 0
    best_accuracy: float = 0.0
    best_epoch: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    best_weights: dict[str, Any] | None = None
    unfinished: ProgressState | None = None
    data_digest: str | None = None
    data_classes: tuple[str, ...] | None = None
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    recipe: dict[str, str] = field(default_factory=dict)
    stateful: Mapping[str, Stateful] = field(default_factory=dict)
    class_weights: tuple[float, ...] | None = None
    frozen: tuple[str, ...] = ()
    ema: EmaWeights | None = None
    random_of_ranks: list[dict[str, Any]] = field(default_factory=list)

    def gather_random_states(self, runtime: Runtime) -> None:
        """Take over the random states of all processes, for a checkpoint; all of them must call this."""
        self.random_of_ranks = runtime.all_gather_object(random_state())[1:]

    def after_update(self) -> None:
        """Count a step of the optimizer."""
        self.scheduler.after_update()
        if self.ema is not None:
            self.ema.update(self.student)

    def weights_at(self, epoch: int) -> str:
        """Whose weights count in an epoch (from 1): 'student' or 'ema'."""
        return EMA if self._averages_at(epoch) and self.config.best_weights != STUDENT else STUDENT

    def measures_both_at(self, epoch: int) -> bool:
        """Whether the average is measured in an epoch (from 1) although the student's weights count."""
        return self._averages_at(epoch) and self.config.best_weights == STUDENT

    def _averages_at(self, epoch: int) -> bool:
        return self.ema is not None and epoch >= (self.config.ema_start or 1)

    def network_at(self, epoch: int) -> nn.Module:
        """The network whose weights count in an epoch (from 1), unwrapped."""
        ema = self.ema if self.weights_at(epoch) == EMA else None
        return unwrapped(self.student) if ema is None else ema.network

    def to_checkpoint(self, runtime: Runtime) -> dict[str, Any]:
        """The state as plain data and tensors; the best weights are separate only if they are not the current ones."""
        card = card_of(self.student)
        current = self.epoch + (self.unfinished is not None)
        return {
            "card": asdict(card) if card is not None else None,
            "model_state_dict": self.network_at(current).state_dict(),
            "weights": self.weights_at(current),
            "config": self.config.model_dump(),
            "epoch": self.epoch,
            "best_accuracy": self.best_accuracy,
            "class_names": list(self.config.class_names or numbers_as_names(self.config.num_classes or 0)),
            "training": {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": runtime.scaler_state(),
                "teacher_digest": self.teacher_digest,
                "data_digest": self.data_digest,
                "data_classes": None if self.data_classes is None else list(self.data_classes),
                "step": self.step,
                "best_epoch": self.best_epoch,
                "best_weights": None if self.is_at_its_best else self.best_weights,
                "ema": None if self.ema is None else self._beside(self.ema, self.weights_at(current)),
                "history": self.history,
                "unfinished": None if self.unfinished is None else dict(self.unfinished),
                "random": random_state(),
                "random_of_ranks": [] if self.unfinished is None else self.random_of_ranks,
                "loss": dict(self.loss_weights),
                "frozen": list(self.frozen),
                "class_weights": None if self.class_weights is None else list(self.class_weights),
                "recipe": dict(self.recipe),
                "stateful": {name: state for name, each in self.stateful.items() if (state := each.state_dict())},
                "made_with": {"torch": str(torch.__version__), "processes": runtime.world_size},
            },
        }

    def _beside(self, ema: EmaWeights, whose: str) -> dict[str, Any]:
        """The state of the EMA, and the weights, its own or the student's, that the checkpoint does not offer."""
        other = unwrapped(self.student) if whose == EMA else ema.network
        return {**ema.state_dict(), "other_weights": other.state_dict()}

    @property
    def is_at_its_best(self) -> bool:
        """Whether the current weights are those of the best epoch."""
        return self.unfinished is None and self.best_epoch == self.epoch

    @property
    def best_balanced_accuracy(self) -> float | None:
        """The balanced accuracy of the best epoch; see `balanced_accuracy_at_best`."""
        return balanced_accuracy_at_best(self.history, self.best_epoch)

    def check_finite(self) -> None:
        """Check that weights and running statistics are finite: the step after a finite loss can still go wrong.

        Other buffers of a user's module may hold infinities on purpose, as attention masks do.

        Raises:
            DivergenceError: names the first weight or running statistic that is not finite.
        """
        terms = (pair for each in self.stateful.values() if isinstance(each, nn.Module) for pair in _trained(each))
        for name, tensor in itertools.chain(_trained(unwrapped(self.student)), terms):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DivergenceError(
                    f"{name} is no longer finite after batch {self.step} of the run; lower lr or beta"
                )

    def restore(self, content: dict[str, Any], source: str, runtime: Runtime) -> None:
        """Restore the state of a checkpoint, including the random generators.

        Args:
            content: the checkpoint, see `read_checkpoint`.
            source: its path, for messages.
            runtime: gets the state of the gradient scaler.

        Raises:
            CheckpointError: the checkpoint does not fit the student, or lacks an entry.
        """
        training = content["training"]
        if training is None:
            raise CheckpointError(f"{source} holds the best weights of a resumed run alone; resume from its _last.pth.")
        try:
            self._restore_weights(content, source)
            self._restore_training(content, training, runtime)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{source} does not fit this run ({type(error).__name__}: {error}).") from error

    def _restore_weights(self, content: dict[str, Any], source: str) -> None:
        offered, beside = content["model_state_dict"], content["training"].get("ema")
        if self.ema is None or beside is None:
            load_weights(self.student, offered, source)
            return
        other = beside["other_weights"]
        of_student, of_ema = (other, offered) if content["weights"] == EMA else (offered, other)
        load_weights(self.student, of_student, source)
        self.ema.restore(beside, of_ema, source)

    def _restore_training(self, content: dict[str, Any], training: dict[str, Any], runtime: Runtime) -> None:
        self.optimizer.load_state_dict(training["optimizer"])
        self.scheduler.load_state_dict(training["scheduler"])
        runtime.load_scaler_state(training["scaler"])
        self.epoch, self.step = content["epoch"], training["step"]
        self.best_accuracy, self.best_epoch = content["best_accuracy"], training["best_epoch"]
        self.history = [dict(record) for record in training["history"]]
        self.best_weights = training["best_weights"]
        if self.best_weights is None and self.best_epoch:
            self.best_weights = on_cpu(content["model_state_dict"])
        self.unfinished = None if training["unfinished"] is None else as_progress(training["unfinished"])
        self._restore_stateful(training.get("stateful", {}))
        self.random_of_ranks = training.get("random_of_ranks", [])
        states = [training["random"], *self.random_of_ranks]
        # of other processes than now, or of version 0.1, there is none of each: the run goes on, but not to the bit
        restore_random_state(states[runtime.rank] if len(states) == runtime.world_size else training["random"])

    def _restore_stateful(self, saved: Mapping[str, dict[str, Any]]) -> None:
        for name, state in saved.items():
            if name not in self.stateful:
                raise ValueError(f"it holds the state of {name}, which this run does not have")
            self.stateful[name].load_state_dict(state)

    def complete_epoch(self, record: EpochRecord, accuracy: float, *, always_best: bool) -> bool:
        """Count a completed epoch; returns whether it is the best so far.

        Args:
            record: its figures, for the history.
            accuracy: of validation, a fraction; without validation of training.
            always_best: the last epoch counts as the best, as without validation.
        """
        self.history.append(record)
        self.epoch += 1
        self.unfinished = None
        is_best = always_best or self.best_epoch == 0 or self._is_better(record, accuracy)
        if is_best:
            self.best_accuracy, self.best_epoch = accuracy, self.epoch
            self.best_weights = on_cpu(self.network_at(self.epoch).state_dict())
        return is_best

    def _is_better(self, record: EpochRecord, accuracy: float) -> bool:
        if self.config.best_by == ACCURACY:
            return accuracy > self.best_accuracy
        return is_better(record, self.history[self.best_epoch - 1], self.config.best_by)

    @property
    def finished_early(self) -> str | None:
        """Why the run ends before its last epoch; None if it does not. See `early_stop`."""
        return None if self.unfinished is not None else early_stop(self.config, self.history, self.best_epoch)

    @property
    def is_complete(self) -> bool:
        """Whether there is no epoch left to train."""
        return self.epoch >= self.config.epochs or self.finished_early is not None


def check_states(stateful: Mapping[str, Stateful]) -> None:
    """Refuse states that a checkpoint cannot store, before any training.

    Raises:
        CheckpointError: names the state's owner and the entry.
    """
    for name, each in stateful.items():
        check_plain(each.state_dict(), f"the state of {name}")


def check_can_be_kept(student: nn.Module) -> None:
    """Refuse a student whose state a checkpoint cannot store or restore, before any training.

    Raises:
        CheckpointError: names the entry of its state_dict and the remedy.
    """
    network = unwrapped(student)
    state = network.state_dict()
    check_plain(state, f"{type(network).__name__}.state_dict()")
    if not all(isinstance(value, Tensor) for value in state.values()):
        # from get_extra_state: without a set_extra_state that takes it, it could be written and not be read again
        load_weights(network, state, "its own state_dict()")


def _trained(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that training changes, by name: trainable parameters and running statistics."""
    yield from (pair for pair in network.named_parameters() if pair[1].requires_grad)
    for prefix, module in network.named_modules():
        if isinstance(module, _NormBase):
            yield from module.named_buffers(prefix, recurse=False)


def on_cpu(weights: dict[str, Any]) -> dict[str, Any]:
    """A copy of a state_dict on the CPU, which later training does not change."""
    return {key: _copy_on_cpu(value) for key, value in weights.items()}


def _copy_on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _copy_on_cpu(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copy_on_cpu, value))
    return copy.deepcopy(value)
