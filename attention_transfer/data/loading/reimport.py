"""Detection of scripts without `if __name__ == "__main__":`, which a worker process would run again.

Under spawn (macOS, Windows) and forkserver (Python 3.14 on Linux) a new process imports the script that started it.
Its top-level code then runs a second time, inside the worker process.
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
"""Exit code of such a process; neither a signal nor a code that Python or torch use."""

_UNTIL_ENDED = 1.0
"""Seconds."""

REMEDY = (
    'put what the script does under `if __name__ == "__main__":`, for each process that loads images imports the '
    "script anew; or set num_workers to 0"
)


def end_if_imported_again(*, is_told_elsewhere: bool = False) -> None:
    """End this process with `EXIT_CODE` if it is a worker that is importing the script that started it.

    It must end, because it would train once more; it runs no code of its own yet that could handle an error.

    Args:
        is_told_elsewhere: print nothing, because the parent process reports the error.
    """
    # multiprocessing's own flag of a process that is being started, by which it refuses to start others
    if not getattr(multiprocessing.current_process(), "_inheriting", False):
        return
    if not is_told_elsewhere:
        print(f"attention-transfer: {REMEDY}.", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


def was_imported_again(error: BaseException, workers: Sequence[BaseProcess]) -> bool:
    """Whether an error in the main process is due to a worker, or the forkserver, that ended with `EXIT_CODE`.

    Args:
        error: raised by torch or multiprocessing.
        workers: the loader's processes that were started.
    """
    if f"with exit code {EXIT_CODE}" in str(error) or any(worker.exitcode == EXIT_CODE for worker in workers):
        return True
    try:
        return any(_ended_so(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__))
    except RuntimeError as raised:  # by torch's signal handler, meanwhile
        return f"with exit code {EXIT_CODE}" in str(raised)


def _ended_so(starting: object) -> bool:
    """Whether this is a process that was being started when the pipe to it broke, and ended with `EXIT_CODE`."""
    if not type(starting).__module__.startswith("multiprocessing.popen_") or not hasattr(starting, "wait"):
        return False
    if starting.wait(_UNTIL_ENDED) == EXIT_CODE:
        return True
    # the forkserver itself imports the script when it starts
    server = getattr(forkserver, "_forkserver", None)
    pid = getattr(server, "_forkserver_pid", None)
    if pid is None or not type(starting).__module__.endswith("forkserver"):
        return False
    try:
        _, status = os.waitpid(pid, 0)
    except OSError:  # its exit status was already collected elsewhere
        return False
    server._forkserver_pid = None  # type: ignore[union-attr]
    return os.waitstatus_to_exitcode(status) == EXIT_CODE
