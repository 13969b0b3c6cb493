"""A whole run, from top to bottom."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from attention_transfer.cache.folder import cache_folder
from attention_transfer.checkpoint import load_weights, read_checkpoint, weights_digest
from attention_transfer.config import Config, resolve_config
from attention_transfer.data.sampler import EpochBatchSampler
from attention_transfer.errors import AttentionTransferError, DivergenceError
from attention_transfer.evaluation import evaluate_model
from attention_transfer.networks.registry import network_name
from attention_transfer.training.artefacts import FINISHED, Artefacts, name_run
from attention_transfer.training.epoch import run_training_epoch, run_validation_epoch
from attention_transfer.training.objective import Objective, say_once
from attention_transfer.training.observers import Run, all_observers
from attention_transfer.training.observers.base import Observers
from attention_transfer.training.observers.log import listening
from attention_transfer.training.precision import batch_shape, choose_precision
from attention_transfer.training.resume import refuse_another_teacher, resumed_config
from attention_transfer.training.runtime import AcceleratedRuntime
from attention_transfer.training.setup import (
    Loader,
    Loaders,
    batches_of,
    images_to_draw,
    keep_pixels_of,
    open_loaders,
    open_student,
    open_teacher,
    prefer_channels_last,
    with_classes,
)
from attention_transfer.training.state import EpochRecord, RunState, seed_everything
from attention_transfer.training.sums import Sums
from attention_transfer.training.teaching import Teaching, open_teaching, with_teacher_precision

logger = logging.getLogger(__name__)


def train_at(
    config: Mapping[str, Any] | Config | None = None,
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
) -> dict[str, Any]:
    """Train a student to look where its teacher looks: the whole run, in one call.

    Without a teacher the student is trained by cross-entropy alone, which is also the way to train a teacher.
    Ctrl-C ends the run and returns what there is; `resume` goes on from any checkpoint of ours.

    Args:
        config: settings, see `create_at_config`; None is `DEFAULT_CONFIG`, a partial dict is completed.
        train_loader: any iterable of (images, labels), instead of data_dir. With it data_dir is not read.
        val_loader: likewise; without one the last epoch counts as the best.
        test_loader: likewise; without one there are no test_results.
        student: a module of your own, instead of the setting `model`.
        teacher: a module of your own, instead of the setting `teacher_model`.

    Returns:
        a dict: model (best weights, eval mode), teacher_model, best_accuracy (fraction), training_history (a dict an
        epoch: epoch, lr, seconds, images_per_second, and train_ and val_ of loss, accuracy, classification, kd,
        attention, attention_stage_i), test_results (see `evaluate_model`; None without a test split), config
        (resolved, a dict), experiment_name, status (finished or stopped).

    Raises:
        ConfigError, DataError, TeacherError, CheckpointError: before training, with the value at fault.
        DivergenceError: the loss was no longer a finite number.

    Example:
        results = train_at(create_at_config(data_dir="photos", teacher_model="teacher.pth", epochs=30))
    """
    say_once.cache_clear()
    config = resolve_config(config)
    with listening() as said:
        return _run(config, (train_loader, val_loader, test_loader), student, teacher, said)


def _run(
    config: Config,
    brought: tuple[Loader | None, Loader | None, Loader | None],
    student: nn.Module | None,
    teacher: nn.Module | None,
    said: Iterable[logging.LogRecord],
) -> dict[str, Any]:
    checkpoint = None
    if config.resume is not None:
        checkpoint = read_checkpoint(config.resume)
        config = resumed_config(config, checkpoint, config.resume)
    runtime = AcceleratedRuntime(config)
    seed_everything(config.seed)
    loaders = open_loaders(config, runtime, *brought)
    try:
        config = with_classes(config, loaders)
        teacher = open_teacher(config, teacher, runtime)
        seed_everything(config.seed)
        student = open_student(config, student).to(runtime.device)
        prefer_channels_last(runtime, student, teacher)

        goes_on = checkpoint is not None and checkpoint["config"]["experiment_name"] == config.experiment_name
        name = config.experiment_name or name_run(config, network_name(student), has_teacher=teacher is not None)
        config = config.model_copy(update={"experiment_name": runtime.from_main(name)})
        artefacts = Artefacts(config)
        if not goes_on and not config.overwrite:
            artefacts.refuse_to_overwrite()

        keep_pixels_of(loaders, config, runtime)
        images = images_to_draw(loaders.val)
        config = _with_precision(config, runtime, student, teacher, loaders, images)
        teaching = open_teaching(config, teacher, loaders.train, loaders.val, runtime)

        state = RunState.start(config, student, None if teacher is None else weights_digest(teacher))
        if checkpoint is not None:
            refuse_another_teacher(state.teacher_digest, checkpoint, str(config.resume))
            state.restore(checkpoint, str(config.resume), runtime)
        if not goes_on and runtime.is_main:
            artefacts.clear()
        run = Run(
            config=config,
            state=state,
            artefacts=artefacts,
            runtime=runtime,
            teacher=teacher,
            splits=loaders.splits(),
            batches=batches_of(loaders.train),
            validates=loaders.val is not None,
            images=images,
            said_before=said,
        )
        return _train(run, loaders, teaching)
    finally:
        loaders.close()


def _with_precision(
    config: Config,
    runtime: AcceleratedRuntime,
    student: nn.Module,
    teacher: nn.Module | None,
    loaders: Loaders,
    images: Tensor | None,
) -> Config:
    """The configuration with the number formats that 'auto' comes to; the runtime computes in the student's."""
    shape = batch_shape(config, loaders.train, images, runtime.world_size)
    batches = batches_of(loaders.train)
    steps = None if batches is None else batches * config.epochs
    precision = choose_precision(config, runtime, student, teacher, shape, steps, cache_folder(config.cache_dir))
    runtime.use_precision(precision)
    config = config.model_copy(update={"precision": precision})
    return config if teacher is None else with_teacher_precision(config, runtime, teacher, shape, steps)


def _train(run: Run, loaders: Loaders, teaching: Teaching) -> dict[str, Any]:
    """The loop: epochs, then the test split; whatever happens, the observers hear how it ended."""
    observers = Observers(all_observers(), run)
    student = _compiled(run.runtime.wrap(run.state.student), run)
    objectives = {
        "train": Objective(run.config, teaching.train, run.runtime),
        "val": Objective(run.config, teaching.val, run.runtime),
    }
    status = "failed"
    try:
        observers.start()
        while run.state.epoch < run.config.epochs:
            record = _train_one_epoch(run, objectives, student, loaders, observers)
            teaching.say_who_answered(run.state.epoch + 1, run.runtime)
            accuracy = record.get("val_accuracy", record["train_accuracy"])
            is_best = run.state.complete_epoch(record, accuracy, always_best=not run.validates)
            observers.epoch(record, is_best)
        _load_best(run)
        run.outcome["test_results"] = _test(run, loaders.test)
        status = FINISHED
    except KeyboardInterrupt:
        status = "stopped"
        run.outcome["error"] = "interrupted"
        _load_best(run)
    except BaseException as error:
        run.outcome["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        for objective in objectives.values():
            objective.close()
        try:
            observers.end(status)
        finally:
            observers.close()
    return _results(run, status)


def _compiled(student: nn.Module, run: Run) -> nn.Module:
    if not run.config.compile:
        return student
    if run.runtime.device.type != "cuda":
        logger.info("compile gains nothing on %s: the student runs as it is", run.runtime.device.type)
        return student
    compiled: Any = torch.compile(student)
    return cast(nn.Module, compiled)


def _train_one_epoch(
    run: Run, objectives: Mapping[str, Objective], student: nn.Module, loaders: Loaders, observers: Observers
) -> EpochRecord:
    epoch = run.state.epoch + 1
    observers.epoch_start(epoch)
    _set_epoch(loaders.train, run.state.epoch)
    if run.runtime.world_size > 1:
        # a shuffled loader of the user's draws its order from torch's generator: shares are disjoint only where all
        # processes draw alike
        torch.manual_seed(run.config.seed + epoch)
    lr = run.state.optimizer.param_groups[0]["lr"]
    began = time.perf_counter()

    def on_batch(batch: int, sums: Sums) -> None:
        run.state.step += 1
        observers.batch(batch, sums)

    try:
        train = run_training_epoch(
            objectives["train"], student, loaders.train, run.state.optimizer, run.runtime, on_batch
        )
    except DivergenceError as error:
        raise DivergenceError(f"epoch {epoch}: {error}. {_last_good(run)}") from None
    seconds = time.perf_counter() - began
    run.state.scheduler.step()
    record: EpochRecord = {
        "epoch": epoch,
        "lr": lr,
        "seconds": seconds,
        "images_per_second": train.samples / seconds,
        **{f"train_{key}": value for key, value in train.figures.items()},
    }
    if loaders.val is not None:
        run.runtime.align_buffers(run.state.student)
        try:
            val = run_validation_epoch(objectives["val"], run.state.student, loaders.val, run.runtime)
        except DivergenceError as error:
            raise DivergenceError(f"epoch {epoch}, validation: {error}. {_last_good(run)}") from None
        record.update({f"val_{key}": value for key, value in val.figures.items()})
    return record


def _set_epoch(loader: Loader, epoch: int) -> None:
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, EpochBatchSampler):
        sampler.set_epoch(epoch)


def _last_good(run: Run) -> str:
    checkpoints = run.artefacts.checkpoints()
    if not checkpoints:
        return "There is no checkpoint yet."
    last = run.artefacts.last if run.artefacts.last in checkpoints else checkpoints[-1]
    return f"The last good checkpoint is {last} (after epoch {run.state.epoch})."


def _load_best(run: Run) -> None:
    if run.state.best_weights is not None:
        load_weights(run.state.student, run.state.best_weights, "the best epoch")
    run.state.student.eval()


def _test(run: Run, loader: Loader | None) -> dict[str, Any] | None:
    """The main process tests alone; what came out, an error too, is every process's."""
    results: dict[str, Any] | None = None
    error: AttentionTransferError | None = None
    if loader is not None and run.runtime.is_main:
        try:
            results = evaluate_model(run.state.student, loader, run.config)
            logger.info("test accuracy %.2f%% on %d images", 100 * results["accuracy"], results["samples"])
        except AttentionTransferError as raised:
            error = raised
    shared: tuple[dict[str, Any] | None, AttentionTransferError | None] = run.runtime.from_main((results, error))
    if shared[1] is not None:
        raise shared[1]
    return shared[0]


def _results(run: Run, status: str) -> dict[str, Any]:
    return {
        "model": run.state.student.eval(),
        "teacher_model": run.teacher,
        "best_accuracy": run.state.best_accuracy,
        "training_history": run.state.history,
        "test_results": run.outcome.get("test_results"),
        "config": run.config.model_dump(),
        "experiment_name": run.artefacts.name,
        "status": status,
    }
