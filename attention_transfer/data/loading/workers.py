"""The processes that load images: who ends them, and what is said when one is lost."""

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

_UNTIL_TOLD, _UNTIL_CLOSED = 1.0, 5.0
"""Seconds."""
_LOADING = ("torch.utils.data.", "torch.multiprocessing.", "multiprocessing.")
"""The modules through which a batch comes from a worker."""

T = TypeVar("T")


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
def explain_lost_workers() -> Iterator[None]:
    """Turn torch's word that a worker has died, which reaches the main thread wherever it is, into one with a remedy.

    Errors of other origin go through as they are: a connection or a file of the user's that ends is the user's. None
    that goes through keeps the workers alive that it came out of, however long it is kept itself.

    Raises:
        DataError: a process that loads images was killed, or has crashed.
        UnguardedScriptError: it ran the user's script again.
    """
    try:
        yield
    except BaseException as error:
        is_unguarded = any(was_imported_again(each, _workers_behind(each)) for each in _chain(error))
        reason = _why_lost(error) if isinstance(error, RuntimeError | ConnectionError | EOFError) else None
        _let_go_of_loaders(error)
        if is_unguarded:
            raise UnguardedScriptError(f"no process that loads images could start: {REMEDY}.") from None
        if reason is None:
            raise
        raise DataError(
            f"a process that loads images is gone ({reason}), most often for want of memory; lower num_workers or "
            "batch_size, or give the run more memory (in a container also more shared memory, --shm-size)."
        ) from error


def end_workers(batches: object) -> None:
    """End the workers behind an iterator of a DataLoader now, whoever still holds it, and what serves them here."""
    if not isinstance(batches, _MultiProcessingDataLoaderIter):
        return
    batches._shutdown_workers()
    for worker in batches._workers:
        if worker.is_alive():  # though torch has terminated it
            worker.kill()
            worker.join()
    queues: list[Any] = [*batches._index_queues, batches._worker_result_queue]
    for queue in queues:
        # torch has closed them, and leaves it to their threads when
        if queue._thread is not None and queue._closed:
            queue._thread.join(_UNTIL_CLOSED)


def one_pass(loader: Iterable[T]) -> Iterator[T]:
    """The batches of one pass; however it ends, its workers end with it, unless the loader keeps them."""
    batches = iter(loader)
    try:
        yield from batches
    finally:
        if getattr(loader, "_iterator", None) is not batches:
            end_workers(batches)
        del batches  # an error keeps this frame


def _let_go_of_loaders(error: BaseException) -> None:
    """Empty the frames of torch's loaders that an error holds: they refer to iterators, queues and connections.

    An iterator that its DataLoader keeps lives on, for the next epoch. The workers of any other are ended here: a
    loader of the user's that wraps torch's may have a frame of its own that refers to it.
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
                    # up to Python 3.12 a frame keeps what it was once asked for until it is asked again
                    frame.f_locals.get("self")


def _why_lost(error: BaseException) -> str | None:
    """What a worker of torch's loaders has died of; None where none has, and the error is of something else."""
    chain = [*_chain(error)]
    words = [str(each) for each in chain if _is_of_a_lost_worker(each)]
    if words:
        # torch's signal handler knows what the loop that was waiting for the worker does not: by what it was killed
        return words[-1].partition(". ")[0].rstrip(". ")
    # a batch that was on its way when its worker died ends in a broken connection, as many things of a user's do
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
    """The workers of the loader that an error came out of."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        loading = frame.f_locals.get("self")
        if isinstance(loading, _MultiProcessingDataLoaderIter):
            return list(loading._workers)
    return []


def _why_dead(workers: Sequence[BaseProcess]) -> str | None:
    # a connection breaks a moment before the system tells that the process behind it is gone
    deadline = time.monotonic() + _UNTIL_TOLD
    try:
        while workers:
            for worker in workers:
                if worker.exitcode:
                    return f"DataLoader worker (pid {worker.pid}) ended with {worker.exitcode}"
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
    except RuntimeError as told:  # by torch's signal handler, meanwhile
        if _is_of_a_lost_worker(told):
            return str(told).partition(". ")[0].rstrip(". ")
        raise
    return None
