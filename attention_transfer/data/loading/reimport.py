"""A script without `if __name__ == "__main__":`, which a process that loads images would run again.

Under spawn (macOS, Windows) and forkserver (Python 3.14 on Linux) a new process imports the script that has started
it. What stands at the script's top level then runs a second time, inside the process that was to load images.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

EXIT_CODE = 86
"""With what such a process ends; no signal, and nothing that Python or torch end with."""

_UNTIL_ENDED = 1.0
"""Seconds."""

REMEDY = (
    'put what the script does under `if __name__ == "__main__":`, for each process that loads images imports the '
    "script anew; or set num_workers to 0"
)


def end_if_imported_again(*, is_told_elsewhere: bool = False) -> None:
    """End this process with `EXIT_CODE` where it is only importing the script that has started it.

    It must not go on, for it would train once more; and no error could be caught, as it runs nothing of its own yet.

    Args:
        is_told_elsewhere: say nothing, for the process that has started this one tells what to do.
    """
    # multiprocessing's own mark of a process that is being made; it refuses to start others by the same
    if not getattr(multiprocessing.current_process(), "_inheriting", False):
        return
    if not is_told_elsewhere:
        print(f"attention-transfer: {REMEDY}.", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


def was_imported_again(error: BaseException, workers: Sequence[BaseProcess]) -> bool:
    """Whether an error in the main process came of a worker, or of the server of workers, that ended so.

    Args:
        error: what torch or multiprocessing raised.
        workers: the loader's processes, as far as they were started.
    """
    if f"with exit code {EXIT_CODE}" in str(error) or any(worker.exitcode == EXIT_CODE for worker in workers):
        return True
    try:
        return any(_ended_so(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__))
    except RuntimeError as told:  # by torch's signal handler, meanwhile
        return f"with exit code {EXIT_CODE}" in str(told)


def _ended_so(starting: object) -> bool:
    """Whether this is a process that was being started when the pipe to it broke, and ended with `EXIT_CODE`."""
    if not type(starting).__module__.startswith("multiprocessing.popen_") or not hasattr(starting, "wait"):
        return False
    if starting.wait(_UNTIL_ENDED) == EXIT_CODE:
        return True
    # the server that forks workers is itself made by importing the script
    server = getattr(forkserver, "_forkserver", None)
    pid = getattr(server, "_forkserver_pid", None)
    if pid is None or not type(starting).__module__.endswith("forkserver"):
        return False
    try:
        _, status = os.waitpid(pid, 0)
    except OSError:  # somebody else has asked before
        return False
    server._forkserver_pid = None  # type: ignore[union-attr]
    return os.waitstatus_to_exitcode(status) == EXIT_CODE
