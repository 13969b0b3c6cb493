"""Python programs in processes of their own, forked from one that has imported torch already.

A fresh interpreter needs four seconds of a core for its imports, and the suite starts a hundred programs. A forked one
has its own standard streams, environment, folder, random numbers and signal handlers, as `python WORDS` has them. What
is about the end of an interpreter is tested with `subprocess`.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

IMPORTED = (
    "attention_transfer.training.train",
    "attention_transfer.visualization",
    "attention_transfer.cli.app",
    "matplotlib.backends.backend_agg",
    "tensorboard.backend.event_processing.event_accumulator",
    "torch.utils.tensorboard",
    "torchmetrics",
)
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([*IMPORTED])


class Program:
    """A program that runs; as `subprocess.Popen` with pipes and text.

    Args:
        words: as behind `python`: -m and a module, -c and code, or a file; and its arguments.
        cwd: its folder.
        env: its whole environment; None is this process's.
        start_new_session: whether it leads a session, and so a group of processes, of its own.
        output: a file for both of its streams; None makes a pipe of each.
    """

    def __init__(
        self,
        *words: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
        output: Path | None = None,
    ) -> None:
        self.args = [str(word) for word in words]
        pipes = [] if output is not None else [_context.Pipe(duplex=False) for _ in range(2)]
        arguments = (self.args, str(cwd or Path.cwd()), dict(os.environ if env is None else env), start_new_session)
        ends = [str(output)] if output is not None else [writer for _, writer in pipes]
        self._process = _context.Process(target=_run, args=(*arguments, ends))
        self._process.start()
        for _, writer in pipes:
            writer.close()
        self._readers = [reader for reader, _ in pipes]
        self.stdout, self.stderr = [os.fdopen(os.dup(reader.fileno())) for reader, _ in pipes] or (None, None)
        assert self._process.pid is not None  # 0 would be this process's own group
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left of its standard output and error, once it has ended."""
        with ThreadPoolExecutor(2) as pool:
            reading = [pool.submit(stream.read) for stream in (self.stdout, self.stderr) if not stream.closed]
            try:
                self.wait(timeout)
                printed = [each.result(timeout) for each in reading]
            except BaseException:
                self.kill()
                raise
        self.close()
        return (*printed, "", "")[:2]

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close the pipes that it wrote to."""
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        for reader in self._readers:
            reader.close()


def run(*words: str | Path, timeout: float = 300, **settings) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; as `subprocess.run`, settings as for `Program`."""
    program = Program(*words, **settings)
    printed, said = program.communicate(timeout)
    return subprocess.CompletedProcess(program.args, program.wait(), printed, said)


def _run(words: list[str], folder: str, env: dict[str, str], is_leader: bool, ends: list[Connection | str]) -> None:
    """What the forked process does: become the program."""
    if is_leader:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, end in zip((1, 2), ends * 2 if len(ends) == 1 else ends, strict=True):
        here = os.open(end, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if isinstance(end, str) else end.fileno()
        os.dup2(here, number)
        os.close(here) if isinstance(end, str) else end.close()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.path.insert(0, "")
    _as_if_fresh(env)
    sys.exit(_code_of(words))


def _as_if_fresh(env: Mapping[str, str]) -> None:
    import numpy as np
    import torch

    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]
    random.seed()
    np.random.seed()
    if "OMP_NUM_THREADS" in env:
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))


def _code_of(words: list[str]) -> int:
    code = 0
    try:
        _become(words)
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return code


def _become(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        main = sys.modules["__main__"] = type(sys)("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")
