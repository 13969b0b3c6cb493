"""Worker processes that load images: their signals, their shutdown, and the error when one dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from attention_transfer.data.loading.reimport import REMEDY, was_imported_again
from attention_transfer.errors import DataError, UnguardedScriptError

_UNTIL_REPORTED, _UNTIL_CLOSED = 1.0, 5.0
"""Seconds."""
_LOADING = ("torch.utils.data.", "torch.multiprocessing.", "multiprocessing.")
"""The modules through which a batch is received from a worker."""

T = TypeVar("T")


def prepare_worker(worker_id: int) -> None:
    """Make a worker use one thread, and leave it to the main process when the run ends.

    A terminal, a launcher or a scheduler signals every process of a run. The main process then finishes its batch, for
    which it needs its workers, and ends them itself. Therefore a worker ignores Ctrl-C, and on Linux also each
    SIGTERM that its parent has not sent. If the parent dies, torch's workers notice and end within seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # Ignoring it altogether would prevent Python and torch from ending a worker that hangs. The new thread inherits
        # the mask; threads that a library started earlier still end the worker on SIGTERM, as in torch.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_the_parent, name="obey-the-parent", daemon=True).start()
    torch.set_num_threads(1)


def _obey_the_parent() -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)


@contextmanager
def explain_lost_workers() -> Iterator[None]:
    """Replace torch's error that a worker has died, raised anywhere in the main thread, by one with a remedy.

    Other errors pass through, such as those of the user's own connections and files; their tracebacks are cleared of
    references to loaders, which would hold the workers alive.

    Raises:
        DataError: a process that loads images was killed, or has crashed.
        UnguardedScriptError: such a process ran the user's script again.
    """
    try:
        yield
    except BaseException as error:
        is_unguarded = any(was_imported_again(each, _workers_behind(each)) for each in _chain(error))
        reason = _why_lost(error) if isinstance(error, RuntimeError | ConnectionError | EOFError) else None
        _clear_loader_frames(error)
        if is_unguarded:
            raise UnguardedScriptError(f"no process that loads images could start: {REMEDY}.") from None
        if reason is None:
            raise
        raise DataError(
            f"a process that loads images is gone ({reason}), most often for want of memory; lower num_workers or "
            "batch_size, or give the run more memory (in a container also more shared memory, --shm-size)."
        ) from error


def end_workers(batches: object) -> None:
    """End the workers of a DataLoader's iterator and the threads of its queues now, even if it is still referenced."""
    if not isinstance(batches, _MultiProcessingDataLoaderIter):
        return
    batches._shutdown_workers()
    for worker in batches._workers:
        if worker.is_alive():  # although torch has terminated it
            worker.kill()
            worker.join()
    queues: list[Any] = [*batches._index_queues, batches._worker_result_queue]
    for queue in queues:
        # torch has closed them, but does not wait for their threads
        if queue._thread is not None and queue._closed:
            queue._thread.join(_UNTIL_CLOSED)


def one_pass(loader: Iterable[T]) -> Iterator[T]:
    """The batches of one pass; its workers end with it, even after an error, unless they are persistent."""
    batches = iter(loader)
    try:
        yield from batches
    finally:
        if getattr(loader, "_iterator", None) is not batches:
            end_workers(batches)
        del batches  # a traceback holds this frame


def _clear_loader_frames(error: BaseException) -> None:
    """Clear the frames of torch's loaders in a traceback: they refer to iterators, queues and connections.

    An iterator with persistent workers stays, for the next epoch. The workers of any other are ended here, because a
    user's loader that wraps torch's may have a frame that refers to it.
    """
    for each in _chain(error):
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if str(frame.f_globals.get("__name__")).startswith(_LOADING):
                loading = frame.f_locals.get("self")
                if isinstance(loading, _MultiProcessingDataLoaderIter) and not loading._persistent_workers:
                    end_workers(loading)
                del loading
                with suppress(RuntimeError):  # it is running
                    frame.clear()
                    # up to Python 3.12 a frame caches f_locals until it is read again
                    frame.f_locals.get("self")


def _why_lost(error: BaseException) -> str | None:
    """The reason for which a worker of torch's loaders has died; None if none has and the error has another cause."""
    chain = [*_chain(error)]
    reasons = [str(each) for each in chain if _is_of_a_lost_worker(each)]
    if reasons:
        # only the error of torch's signal handler names the signal that killed the worker
        return reasons[-1].partition(". ")[0].rstrip(". ")
    # a batch in transit when its worker died gives a connection error, as may a user's own code
    return None if isinstance(error, RuntimeError) else _why_dead([w for each in chain for w in _workers_behind(each)])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _is_of_a_lost_worker(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _workers_behind(error: BaseException) -> list[BaseProcess]:
    """The workers of the loader that raised an error."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        loading = frame.f_locals.get("self")
        if isinstance(loading, _MultiProcessingDataLoaderIter):
            return list(loading._workers)
    return []


def _why_dead(workers: Sequence[BaseProcess]) -> str | None:
    # a connection breaks shortly before the system reports that its process has ended
    deadline = time.monotonic() + _UNTIL_REPORTED
    try:
        while workers:
            for worker in workers:
                if worker.exitcode:
                    return f"DataLoader worker (pid {worker.pid}) ended with {worker.exitcode}"
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
    except RuntimeError as raised:  # by torch's signal handler, meanwhile
        if _is_of_a_lost_worker(raised):
            return str(raised).partition(". ")[0].rstrip(". ")
        raise
    return None
