"""A whole training run."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, cast

import torch
from torch import nn

from attention_transfer.checkpoint import load_weights
from attention_transfer.config import Config, resolve_config
from attention_transfer.data.decoding.once import warn_anew
from attention_transfer.data.loading.loaders import own_sampler
from attention_transfer.data.loading.reimport import end_if_imported_again
from attention_transfer.data.loading.workers import explain_lost_workers
from attention_transfer.distributed import AcceleratedRuntime
from attention_transfer.errors import UnguardedScriptError
from attention_transfer.features.maps import MapFunction
from attention_transfer.logs import capture_logs, log_once
from attention_transfer.losses.classification import CrossEntropy
from attention_transfer.losses.term import LossTerm
from attention_transfer.losses.total import needs_of_teacher
from attention_transfer.networks.class_lists import students_classes
from attention_transfer.seeding import seed_process
from attention_transfer.teacher.classes import match_logits
from attention_transfer.training.autosave import AutoSave
from attention_transfer.training.callbacks.base import Callback, CallbackList
from attention_transfer.training.checkpointing.paths import FAILED, FINISHED, STOPPED
from attention_transfer.training.checkpointing.state import EpochRecord
from attention_transfer.training.context import RunContext
from attention_transfer.training.criterion.criterion import Criterion
from attention_transfer.training.divergence import naming_the_epoch
from attention_transfer.training.epoch import run_training_epoch
from attention_transfer.training.epoch_progress import EpochProgress
from attention_transfer.training.optim import MakeOptimizer, MakeScheduler
from attention_transfer.training.optim.updates import UpdateRule
from attention_transfer.training.setup.data.loaders import Loader, Loaders
from attention_transfer.training.setup.prepare import PreparedRun, prepare
from attention_transfer.training.setup.start.freezing import frozen_modules
from attention_transfer.training.setup.user_parts import UserParts
from attention_transfer.training.signals import NOT_SAVED, SAVED, TESTED, SignalHandler, Stopped
from attention_transfer.training.testing import test_run
from attention_transfer.training.validation import measure

logger = logging.getLogger(__name__)


def train_at(
    config: Mapping[str, Any] | Config | None = None,
    train_loader: Loader | None = None,
    val_loader: Loader | None = None,
    test_loader: Loader | None = None,
    *,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    terms: Sequence[LossTerm] = (),
    map_function: MapFunction | None = None,
    callbacks: Sequence[Callback] = (),
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
) -> dict[str, Any]:
    """Train a student to look where its teacher looks: the whole run, in one call.

    Without a teacher the student is trained with cross-entropy alone, which is also the way to train a teacher.
    Ctrl-C ends the run and returns the results so far; `resume` resumes any checkpoint of this library.

    Args:
        config: settings, see `create_at_config`; None is `DEFAULT_CONFIG`, a partial dict is completed.
        train_loader: any iterable of (images [B, C, H, W], labels [B]), instead of data_dir, which is then not read.
            One batch of each loader of yours is fetched and checked before training.
        val_loader: likewise; without one the last epoch counts as the best.
        test_loader: likewise; without one, or if its batches have no labels, there are no test_results.
        student: a module of your own, instead of the setting `model`.
        teacher: a module of your own, instead of the setting `teacher_model`.
        terms: loss terms of your own, beside alpha KD and beta AT (whose weights may be 0); see `LossTerm`.
        map_function: a kind of attention map of your own that AT compares, instead of the setting `attention`; see
            `MapFunction`.
        callbacks: of your own, called after the library's; see `Callback`.
        optimizer: a function from parameter groups to a torch optimizer, instead of the settings' optimizer.
        scheduler: a function from the optimizer to a torch learning rate scheduler, stepped once per epoch, instead of
            the settings' schedule.

    Returns:
        a dict: model (weights of the best epoch, by the settings best_by and best_weights; eval mode), teacher_model,
        best_accuracy (of validation in that epoch, a fraction), best_balanced_accuracy (likewise; None without
        validation), training_history (a dict per epoch: epoch, lr, seconds, images_per_second, train_ and val_ of loss,
        accuracy, classification, kd, attention, attention_stage_i and what terms of your own report, and
        val_balanced_accuracy), test_results (see `evaluate_model`; None without a test split, or if the test failed),
        test_error (why it failed, else None), config (resolved, a dict), experiment_name, status (finished or stopped),
        stopped_by (SIGINT, SIGTERM or the reason given by a callback, else None), finished_early (why a finished run
        has trained fewer epochs, else None; see early_stopping).

    Raises:
        ConfigError, DataError, TeacherError, CheckpointError: before training, with the value at fault.
        DivergenceError: the loss was no longer a finite number.

    Example:
        results = train_at(create_at_config(data_dir="photos", teacher_model="teacher.pth", epochs=30))
    """
    log_once.cache_clear()
    warn_anew()
    config = resolve_config(config)
    end_if_imported_again(is_told_elsewhere=train_loader is None and config.num_workers > 0)
    parts = UserParts(
        train_loader, val_loader, test_loader, student, teacher, terms, map_function, callbacks, optimizer, scheduler
    )
    try:
        with capture_logs() as captured, explain_lost_workers():
            return _run(config, parts, captured)
    except UnguardedScriptError as error:
        # the line to fix is the caller's own
        raise error.with_traceback(None) from None


def _run(config: Config, parts: UserParts, captured: Iterable[logging.LogRecord]) -> dict[str, Any]:
    with ExitStack() as cleanup:
        runtime = cleanup.enter_context(closing(AcceleratedRuntime(config)))
        prepared = prepare(config, runtime, parts, captured, cleanup)
        promise = SAVED if _can_start_inside(prepared) else NOT_SAVED
        # closed inside: a launcher's second copy of a signal must not hit the end of the workers
        with SignalHandler(promise) as request, closing(cleanup):
            return _train(prepared, request)


def _can_start_inside(prepared: PreparedRun) -> bool:
    """Whether the training loader can start inside an epoch."""
    return own_sampler(prepared.loaders.train, prepared.run.runtime.world_size) is not None


def _train(prepared: PreparedRun, request: SignalHandler) -> dict[str, Any]:
    """The loop: epochs, then the test split; however it ends, `run_ended` is called on the callbacks."""
    run, loaders, teachers = prepared.run, prepared.loaders, prepared.teachers
    callbacks = CallbackList(prepared.callbacks, run)
    student = _compiled(run.runtime.wrap(run.state.student), run)
    distils = needs_of_teacher(prepared.terms).logits
    matched = match_logits(run.teacher, students_classes(run.config), distils=distils)
    trained = CrossEntropy(run.config.label_smoothing, run.state.class_weights)
    criteria = {
        "train": Criterion(run.config, teachers.train, run.runtime, prepared.terms, matched, trained),
        "val": Criterion(run.config, teachers.val, run.runtime, prepared.terms, matched),
    }
    autosave = AutoSave(run, callbacks, request, keeps_position=_can_start_inside(prepared))
    status = FAILED
    try:
        with explain_lost_workers():
            callbacks.run_started()
            run.runtime.wait_for_all()
            if run.state.finished_early:
                logger.info("the run is finished already, and does not go on: %s", run.state.finished_early)
            while not run.state.is_complete:
                record = _train_one_epoch(run, criteria, student, loaders, callbacks, autosave)
                teachers.log_cache_hits(run.state.epoch + 1, run.runtime)
                accuracy = record.get("val_accuracy", record["train_accuracy"])
                is_best = run.state.complete_epoch(record, accuracy, always_best=not run.validates)
                callbacks.epoch_completed(record, is_best)
                autosave.after_epoch()
            request.promise = TESTED
            _load_best(run)
            run.outcome.update(test_run(run, loaders.test))
            status = FINISHED
    except (KeyboardInterrupt, Stopped) as stopped:
        status = STOPPED
        by = stopped.by if isinstance(stopped, Stopped) else signal.SIGINT.name
        run.outcome["error"] = run.outcome["stopped_by"] = by
        _load_best(run)
    except BaseException as error:
        run.outcome["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        with ExitStack() as ending:
            ending.callback(callbacks.close)
            ending.callback(callbacks.run_ended, status)
            for criterion in criteria.values():
                ending.callback(criterion.close)
    return _results(run, status)


def _compiled(student: nn.Module, run: RunContext) -> nn.Module:
    if not run.config.compile:
        return student
    if run.runtime.device.type != "cuda":
        logger.info("compile gains nothing on %s: the student runs as it is", run.runtime.device.type)
        return student
    compiled: Any = torch.compile(student)
    return cast(nn.Module, compiled)


def _train_one_epoch(
    run: RunContext,
    criteria: Mapping[str, Criterion],
    student: nn.Module,
    loaders: Loaders,
    callbacks: CallbackList,
    autosave: AutoSave,
) -> EpochRecord:
    state, runtime, epoch = run.state, run.runtime, run.state.epoch + 1
    callbacks.epoch_started(epoch)
    progress = _progress(run, loaders.train, criteria["train"].weights)
    rule = UpdateRule(run.config.accumulate, run.config.clip_grad, state.after_update)

    def on_batch(progress: EpochProgress) -> None:
        state.step += 1
        callbacks.batch_trained(progress.batches - 1, progress.meter)
        autosave.after_batch(progress)

    with naming_the_epoch(run, f"epoch {epoch}"):
        train = run_training_epoch(
            criteria["train"],
            student,
            loaders.train,
            state.optimizer,
            runtime,
            on_batch,
            progress,
            frozen_modules(state.student, state.frozen),
            rule,
        )
        state.check_finite()
    seconds = progress.seconds
    record: EpochRecord = {
        "epoch": epoch,
        "lr": progress.lr,
        "seconds": seconds,
        "images_per_second": train.samples / seconds,
        **{f"train_{key}": value for key, value in train.figures.items()},
    }
    if loaders.val is not None:
        runtime.align_buffers(criteria["train"].modules)
        if runtime.world_size > 1 and own_sampler(loaders.val) is None:
            seed_process(run.config.seed + epoch, runtime.rank, runtime.device, is_own_order=False)
        record |= measure(
            run, criteria["val"], loaders.val, lambda batches: autosave.after_validation_batch(batches, progress)
        )
    state.scheduler.after_epoch()
    return record


def _progress(run: RunContext, loader: Loader, weights: Mapping[str, float]) -> EpochProgress:
    """The progress of the next epoch: at its first batch, or as restored from an unfinished one."""
    state, runtime = run.state, run.runtime
    lr = state.optimizer.param_groups[0]["lr"]
    progress = EpochProgress(runtime, weights, state.epoch, run.batches, lr)
    unfinished, state.unfinished = state.unfinished, None
    sampler = own_sampler(loader)
    if sampler is not None:
        sampler.set_epoch(state.epoch, 0 if unfinished is None else unfinished["batches"])
    if unfinished is not None:
        progress.load_state_dict(unfinished)
    elif runtime.world_size > 1:
        seed_process(run.config.seed + state.epoch + 1, runtime.rank, runtime.device, is_own_order=sampler is not None)
    return progress


def _load_best(run: RunContext) -> None:
    if run.state.best_weights is not None:
        load_weights(run.state.student, run.state.best_weights, "the best epoch")
        if run.state.ema is not None:
            best = run.state.best_epoch
            whose = run.state.weights_at(best)
            logger.info("the model returned has the weights after epoch %d, those of the %s", best, whose)
    run.state.student.eval()


def _results(run: RunContext, status: str) -> dict[str, Any]:
    return {
        "model": run.state.student.eval(),
        "teacher_model": run.teacher,
        "best_accuracy": run.state.best_accuracy,
        "best_balanced_accuracy": run.state.best_balanced_accuracy,
        "training_history": run.state.history,
        "test_results": run.outcome.get("test_results"),
        "test_error": run.outcome.get("test_error"),
        "config": run.config.model_dump(),
        "experiment_name": run.paths.name,
        "status": status,
        "stopped_by": run.outcome.get("stopped_by"),
        "finished_early": run.state.finished_early,
    }
