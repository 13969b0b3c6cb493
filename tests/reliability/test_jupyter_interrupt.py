"""A real notebook's kernel is interrupted while a cell trains, as its stop button does it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from queue import Empty

import pytest

from attention_transfer.checkpoint import read_checkpoint

CELL = """
import json
from attention_transfer import train_at
results = train_at(json.loads({settings!r}))
print("it ended as", results["status"], results["stopped_by"], len(results["training_history"]))
"""
NEXT_CELL = """
import signal
print("the next cell", results["model"].training, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
EPOCHS = 500


@pytest.fixture
def kernel():
    """A client of a fresh kernel, and what interrupts it."""
    pytest.importorskip("ipykernel", reason="the kernel of notebooks (ipykernel) is not installed")
    manager_of = pytest.importorskip("jupyter_client.manager", reason="jupyter_client is not installed")
    manager, client = manager_of.start_new_kernel(cwd=str(Path(__file__).parents[2]), kernel_name="python3")
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def until_idle(client, message, seconds=60):
    """What a cell printed, errors too, once the kernel is done with it."""
    printed, deadline = "", time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            heard = client.get_iopub_msg(timeout=1)
        except Empty:
            continue
        if heard["parent_header"].get("msg_id") == message:
            content = heard["content"]
            printed += content.get("text", "") + "\n".join(content.get("traceback", ()))
            if content.get("execution_state") == "idle":
                return printed
    raise AssertionError(f"the cell is not over after {seconds} seconds: {printed}")


def test_the_stop_button_of_a_notebook_ends_the_cell_with_what_there_is_and_the_next_cell_runs(
    settings, tmp_path, kernel
):
    manager, client = kernel
    settings = {
        **settings,
        "model": "CifarResNet-8",
        "epochs": EPOCHS,
        "batch_size": 2,
        "cache_dir": str(tmp_path / "cache"),
    }
    last, deadline = tmp_path / "checkpoints" / "run_last.pth", time.monotonic() + 120
    message = client.execute(CELL.format(settings=json.dumps(settings)))
    while not last.exists():
        assert time.monotonic() < deadline, until_idle(client, message, 1)
        time.sleep(0.05)
    time.sleep(0.2)  # well inside the next epoch: a stop right behind a saved one saves nothing more
    manager.interrupt_kernel()
    printed = until_idle(client, message)
    told = re.search(r"it ended as (\w+) (\w+) (\d+)", printed)
    assert told is not None, printed
    assert told.groups()[:2] == ("stopped", "SIGINT")
    assert 1 <= int(told[3]) < EPOCHS
    assert "KeyboardInterrupt" not in printed
    # a KeyboardInterrupt in the middle of a batch would end the run as well, but not save it there
    assert read_checkpoint(last)["training"]["unfinished"] is not None
    assert "the next cell False True" in until_idle(client, client.execute(NEXT_CELL))
