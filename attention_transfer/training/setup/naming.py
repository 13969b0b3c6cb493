"""The name of a run, and the lock on it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from torch import nn

from attention_transfer.config import Config
from attention_transfer.distributed import AcceleratedRuntime, all_or_raise
from attention_transfer.errors import ConfigError
from attention_transfer.networks.registry import network_name
from attention_transfer.training.checkpointing.lock import RunLock
from attention_transfer.training.checkpointing.paths import RunPaths, name_run


def take_name(config: Config, runtime: AcceleratedRuntime, cleanup: ExitStack) -> None:
    """Lock the run's name, in the folder of its checkpoints and in that of its logs."""
    if config.experiment_name is None:
        raise ConfigError("resume is 'auto', but experiment_name is None: name the experiment to resume.")
    files = RunPaths(config)
    locks = {files.lock.absolute(): "save_dir"}
    locks.setdefault(files.log_lock.absolute(), "log_dir")
    for path, setting in locks.items():
        all_or_raise(runtime, partial(_take, cleanup, path, files.name, setting=setting, held=runtime.is_main))


def _take(cleanup: ExitStack, path: Path, name: str, *, setting: str, held: bool) -> None:
    cleanup.callback(RunLock(path, name, setting=setting, held=held).release)


def with_name(config: Config, runtime: AcceleratedRuntime, student: nn.Module, *, has_teacher: bool) -> Config:
    """The configuration with the name of the run, the same in every process: as set, or a unique one."""
    name = config.experiment_name or name_run(config, network_name(student), has_teacher=has_teacher)
    return config.model_copy(update={"experiment_name": runtime.broadcast_object(name)})
