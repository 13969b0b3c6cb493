"""A whole run, from top to bottom."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from attention_transfer.checkpoint import load_weights, read_checkpoint
from attention_transfer.config import Config, resolve_config
from attention_transfer.data.sampler import EpochBatchSampler
from attention_transfer.data.workers import explain_lost_workers
from attention_transfer.distributed import AcceleratedRuntime
from attention_transfer.errors import AttentionTransferError, DivergenceError
from attention_transfer.evaluation import evaluate_model
from attention_transfer.logs import capture_logs, log_once
from attention_transfer.teacher.build import Teachers
from attention_transfer.training.autosave import AutoSave
from attention_transfer.training.callbacks import RunContext, default_callbacks
from attention_transfer.training.callbacks.base import CallbackList
from attention_transfer.training.checkpointing.paths import FAILED, FINISHED, STOPPED
from attention_transfer.training.checkpointing.state import EpochRecord
from attention_transfer.training.criterion import Criterion
from attention_transfer.training.epoch import run_training_epoch, run_validation_epoch
from attention_transfer.training.epoch_progress import EpochProgress
from attention_transfer.training.setup.loaders import Loader, Loaders, has_position
from attention_transfer.training.setup.prepare import prepare
from attention_transfer.training.signals import NOT_SAVED, SAVED, TESTED, SignalHandler, Stopped

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
        (resolved, a dict), experiment_name, status (finished or stopped), stopped_by (SIGINT or SIGTERM, else None).

    Raises:
        ConfigError, DataError, TeacherError, CheckpointError: before training, with the value at fault.
        DivergenceError: the loss was no longer a finite number.

    Example:
        results = train_at(create_at_config(data_dir="photos", teacher_model="teacher.pth", epochs=30))
    """
    log_once.cache_clear()
    config = resolve_config(config)
    with capture_logs() as said, explain_lost_workers():
        return _run(config, (train_loader, val_loader, test_loader), student, teacher, said)


def _run(
    config: Config,
    user_loaders: tuple[Loader | None, Loader | None, Loader | None],
    student: nn.Module | None,
    teacher: nn.Module | None,
    said: Iterable[logging.LogRecord],
) -> dict[str, Any]:
    prepared = prepare(config, AcceleratedRuntime(config), user_loaders, student, teacher, said)
    has_place = has_position(prepared.loaders.train, prepared.run.runtime)
    # closed inside: a launcher's second copy of a signal must not hit the end of the workers
    with SignalHandler(SAVED if has_place else NOT_SAVED) as request, closing(prepared):
        return _train(prepared.run, prepared.loaders, prepared.teachers, request)


def _train(run: RunContext, loaders: Loaders, teachers: Teachers, request: SignalHandler) -> dict[str, Any]:
    """The loop: epochs, then the test split; whatever happens, the observers hear how it ended."""
    callbacks = CallbackList(default_callbacks(), run)
    student = _compiled(run.runtime.wrap(run.state.student), run)
    criteria = {
        "train": Criterion(run.config, teachers.train, run.runtime),
        "val": Criterion(run.config, teachers.val, run.runtime),
    }
    autosave = AutoSave(run, callbacks, request, keeps_position=has_position(loaders.train, run.runtime))
    status = FAILED
    try:
        with explain_lost_workers():
            callbacks.start()
            while run.state.epoch < run.config.epochs:
                record = _train_one_epoch(run, criteria, student, loaders, callbacks, autosave)
                teachers.log_cache_hits(run.state.epoch + 1, run.runtime)
                accuracy = record.get("val_accuracy", record["train_accuracy"])
                is_best = run.state.complete_epoch(record, accuracy, always_best=not run.validates)
                callbacks.epoch(record, is_best)
                autosave.after_epoch()
            request.promise = TESTED
            _load_best(run)
            run.outcome["test_results"] = _test(run, loaders.test)
            status = FINISHED
    except (KeyboardInterrupt, Stopped) as stopped:
        status = STOPPED
        run.outcome["error"] = run.outcome["stopped_by"] = (
            stopped.signal.name if isinstance(stopped, Stopped) else signal.SIGINT.name
        )
        _load_best(run)
    except BaseException as error:
        run.outcome["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        for criterion in criteria.values():
            criterion.close()
        try:
            callbacks.end(status)
        finally:
            callbacks.close()
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
    callbacks.epoch_start(epoch)
    position, seconds_before = _resume_position(run, loaders.train)
    lr = state.optimizer.param_groups[0]["lr"]
    began = time.perf_counter() - seconds_before

    def on_batch(position: EpochProgress) -> None:
        state.step += 1
        callbacks.batch(position.batches - 1, position.sums)
        autosave.after_batch(position, began)

    with _naming_the_epoch(run, f"epoch {epoch}"):
        train = run_training_epoch(
            criteria["train"], student, loaders.train, state.optimizer, runtime, on_batch, position
        )
        state.check_finite()
    seconds = time.perf_counter() - began
    record: EpochRecord = {
        "epoch": epoch,
        "lr": lr,
        "seconds": seconds,
        "images_per_second": train.samples / seconds,
        **{f"train_{key}": value for key, value in train.figures.items()},
    }
    if loaders.val is not None:
        runtime.align_buffers(state.student)
        with _naming_the_epoch(run, f"epoch {epoch}, validation"):
            val = run_validation_epoch(
                criteria["val"],
                state.student,
                loaders.val,
                runtime,
                lambda batches: autosave.after_validation_batch(batches, position, began),
            )
        record.update({f"val_{key}": value for key, value in val.figures.items()})
    with warnings.catch_warnings():
        # a run that goes on behind the last batch of an epoch has not stepped its optimizer in this process
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        state.scheduler.step()
    return record


def _resume_position(run: RunContext, loader: Loader) -> tuple[EpochProgress, float]:
    """The position from which the next epoch goes on, and the seconds that were spent to get there."""
    state, runtime = run.state, run.runtime
    position = EpochProgress(runtime, run.config)
    unfinished, state.unfinished = state.unfinished, None
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, EpochBatchSampler):
        sampler.set_epoch(state.epoch, 0 if unfinished is None else unfinished.batches)
    if unfinished is None:
        if runtime.world_size > 1:
            # a shuffled loader of the user's draws its order from torch's generator: shares are disjoint only where
            # all processes draw alike
            torch.manual_seed(run.config.seed + state.epoch + 1)
        return position, 0.0
    position.go_on(unfinished.batches, unfinished.images, unfinished.sums)
    return position, unfinished.seconds


@contextmanager
def _naming_the_epoch(run: RunContext, when: str) -> Iterator[None]:
    """A loss that is no number is told with the epoch, the learning rate, and what there is to go back to."""
    try:
        yield
    except DivergenceError as error:
        lr = run.state.optimizer.param_groups[0]["lr"]
        raise DivergenceError(f"{when}, lr {lr:g}: {error}. {_last_good(run)}") from None


def _last_good(run: RunContext) -> str:
    """A sentence that names the newest checkpoint that verifies."""
    checkpoints, last = run.paths.checkpoints(), run.paths.last
    if not checkpoints:
        return "There is no checkpoint yet."
    # the last is the newest, unless something has happened to it
    good = _progress_in(last) if last in checkpoints else None
    if good is None:
        others = [(progress, path) for path in checkpoints if (progress := _progress_in(path)) is not None]
        if not others:
            return f"None of the {len(checkpoints)} checkpoints can be read."
        good, last = max(others, key=lambda pair: pair[0])
    inside = f" and {good[1]} batches" if good[1] else ""
    return f"The last good checkpoint is {last} (after epoch {good[0]}{inside})."


def _progress_in(checkpoint: Path) -> tuple[int, int] | None:
    """The epochs, and the batches of an unfinished one, that a checkpoint holds; None where it cannot be read."""
    try:
        content = read_checkpoint(checkpoint)
        unfinished = content["training"]["unfinished"] if content["training"] else None
        return content["epoch"], unfinished["batches"] if unfinished else 0
    except Exception:  # whatever is wrong with a file must not hide what has ended the run
        return None


def _load_best(run: RunContext) -> None:
    if run.state.best_weights is not None:
        load_weights(run.state.student, run.state.best_weights, "the best epoch")
    run.state.student.eval()


def _test(run: RunContext, loader: Loader | None) -> dict[str, Any] | None:
    """The main process tests alone; what came out, an error too, is every process's."""
    results: dict[str, Any] | None = None
    error: AttentionTransferError | None = None
    if loader is not None and run.runtime.is_main:
        try:
            with explain_lost_workers():
                results = evaluate_model(run.state.student, loader, run.config)
            logger.info("test accuracy %.2f%% on %d images", 100 * results["accuracy"], results["samples"])
        except AttentionTransferError as raised:
            error = raised
    shared: tuple[dict[str, Any] | None, AttentionTransferError | None] = run.runtime.broadcast_object((results, error))
    if shared[1] is not None:
        raise shared[1]
    return shared[0]


def _results(run: RunContext, status: str) -> dict[str, Any]:
    return {
        "model": run.state.student.eval(),
        "teacher_model": run.teacher,
        "best_accuracy": run.state.best_accuracy,
        "training_history": run.state.history,
        "test_results": run.outcome.get("test_results"),
        "config": run.config.model_dump(),
        "experiment_name": run.paths.name,
        "status": status,
        "stopped_by": run.outcome.get("stopped_by"),
    }
