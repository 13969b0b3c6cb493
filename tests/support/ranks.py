"""Processes of one run, as a launcher starts them, but warm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.warm import Program
from torch.distributed import TCPStore


@contextmanager
def started(count: int, *words: str | Path) -> Iterator[list[Program]]:
    """`count` processes that run the same program, by rank; whatever is left of them ends with the block.

    As under torchrun they meet at a store that somebody else holds, whose port is free because it is taken.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        **os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
    }  # fmt: skip
    programs = [
        Program(*words, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else None)
        for rank in range(count)
    ]
    try:
        yield programs
    finally:
        for program in programs:
            program.kill()
            program.wait()
            program.close()


def run(count: int, *words: str | Path) -> None:
    """`count` processes to their end, which must be a good one."""
    with started(count, *words) as programs:
        for program in programs:
            printed, said = program.communicate(300)
            assert program.returncode == 0, printed + said
