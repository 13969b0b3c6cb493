"""The processes that load images: who ends them, and what is said when one is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from attention_transfer.errors import DataError


def prepare_worker(worker_id: int) -> None:
    """Make a worker use one thread, and leave it to the main process when the run ends.

    A terminal, a launcher or a scheduler asks every process of a run to stop. The main process then finishes its
    batch, for which it needs its workers, and ends them itself. So a worker ignores Ctrl-C, and on Linux also each
    SIGTERM that its parent has not sent. If the parent dies, torch's workers notice and end within seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # Ignoring it altogether would keep Python and torch from ending a worker that does not answer. The mask is
        # the new thread's too; threads that a library has started before still end the worker, as torch has it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_the_parent, name="obey-the-parent", daemon=True).start()
    torch.set_num_threads(1)


def _obey_the_parent() -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)


@contextmanager
def telling_of_lost_workers() -> Iterator[None]:
    """Turn torch's word that a worker has died, which reaches the main thread wherever it is, into one with a remedy.

    Raises:
        DataError: a process that loads images was killed, or has crashed.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        # a batch that was on its way when its worker died ends in a broken connection
        if isinstance(error, RuntimeError) and not _is_of_a_lost_worker(error):
            raise
        # torch's signal handler knows what the loop that was waiting for the worker does not: by what it was killed
        first = error.__cause__ if _is_of_a_lost_worker(error.__cause__) else error
        reason = str(first).partition(". ")[0].rstrip(". ")
        raise DataError(
            f"a process that loads images is gone ({reason}), most often for want of memory; lower num_workers or "
            "batch_size, or give the run more memory (in a container also more shared memory, --shm-size)."
        ) from error


def _is_of_a_lost_worker(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
