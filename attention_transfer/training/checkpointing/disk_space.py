"""Checks before training that the files of a run can be written."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from attention_transfer.errors import WriteError
from attention_transfer.files import check_writable, disk_space, greatest_file, remove_drafts
from attention_transfer.modules import unwrapped
from attention_transfer.training.checkpointing.paths import RunPaths
from attention_transfer.training.optim.optimizers import StateSize

AT_ONCE = 2
"""Checkpoints that are on the disk while one replaces another."""
NEW_FILES = 8
"""New files that a run begins with: last, best, final, a draft, log, summary, TensorBoard's folder and its events."""
_SUMMARY_BYTES = 4096
_BYTES_BESIDE, _BYTES_A_TENSOR = 64 << 10, 512

logger = logging.getLogger(__name__)


def checkpoint_bytes(student: nn.Module, state: StateSize | None = None, *, has_ema: bool = False) -> int:
    """The most bytes that a checkpoint of a student can have: weights, momentum, and a copy of the best weights.

    Args:
        student: the network.
        state: what the optimizer keeps of each parameter; None: a momentum.
        has_ema: an average of the weights is kept, too.
    """
    state = state or StateSize()
    copies = 3 if has_ema else 2
    network = unwrapped(student)
    weights = [tensor for tensor in network.state_dict().values() if isinstance(tensor, Tensor)]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    beside = _BYTES_BESIDE + _BYTES_A_TENSOR * (copies * len(weights) + state.tensors * len(trained))
    return copies * _stored(weights) + math.ceil(state.copies * _stored(trained)) + beside


def _stored(tensors: Iterable[Tensor]) -> int:
    # torch.save writes a tensor's whole storage, and a shared storage once
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def check_disk_space(save_dir: str, log_dir: str, size: int) -> None:
    """Check that a run can write its files; makes its folders, and removes half-written files of killed runs.

    Args:
        save_dir: folder of the checkpoints.
        log_dir: folder of log, summary and TensorBoard run.
        size: most bytes of a checkpoint, see `checkpoint_bytes`.

    Raises:
        WriteError: a folder cannot be made or written to, or the disk has no room for a new checkpoint beside the one
            that it replaces; the message names the path, the bytes or files needed and free, and the remedy.
    """
    remove_drafts(save_dir)
    remove_drafts(log_dir)
    needed, free = AT_ONCE * size, disk_space(Path(save_dir)).free
    if free is not None and free < needed:
        raise WriteError(
            f"save_dir is {save_dir!r}: a new checkpoint beside the one that it replaces needs {needed:,} bytes, but "
            f"the disk there has {free:,} bytes free; make room there, or set save_dir to another disk."
        )
    limit = greatest_file()
    if limit is not None and limit < size:
        raise WriteError(
            f"save_dir is {save_dir!r}: a checkpoint needs {size:,} bytes, but a file may have {limit:,} bytes here "
            "(ulimit -f); raise the limit."
        )
    for folder, name, bytes_needed, setting in (
        (save_dir, "checkpoint.pth", size, "save_dir"),
        (log_dir, "summary.json", _SUMMARY_BYTES, "log_dir"),
    ):
        _check_files(folder, setting)
        check_writable(Path(folder, name), bytes_needed, setting)


def _check_files(folder: str, setting: str) -> None:
    files = disk_space(Path(folder)).files
    if files is not None and files < NEW_FILES:
        raise WriteError(
            f"{setting} is {folder!r}: a run needs {NEW_FILES} new files, but the file system there has {files} inodes "
            f"left; remove files there, or set {setting} to another disk."
        )


def warn_of_little_disk_space(paths: RunPaths, numbered: Iterable[int], size: int) -> None:
    """Log a warning if the disk has no room for all checkpoints of the run.

    Args:
        paths: of the run's files.
        numbered: the epochs after which a numbered checkpoint is saved.
        size: most bytes of a checkpoint.
    """
    planned = [paths.last, paths.best, paths.final, *map(paths.numbered, numbered)]
    to_come = [path for path in planned if not os.access(path, os.F_OK)]
    needed, free = (len(to_come) + 1) * size, disk_space(paths.last.parent).free
    if free is not None and free < needed:
        logger.warning(
            "the %d checkpoints to come may need %s bytes in %s, where %s bytes are free: make room meanwhile, or "
            "raise save_freq",
            len(to_come), f"{needed:,}", paths.last.parent, f"{free:,}",
        )  # fmt: skip
