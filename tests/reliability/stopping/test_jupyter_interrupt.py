"""A real notebook's kernel is interrupted while a cell trains, as its stop button does it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from support.notebooks import until_idle
from support.programs import BEFORE_IT_HANGS

from attention_transfer.checkpoint import read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.speed]

CELL = """
import json, signal, time
from pathlib import Path
from attention_transfer import create_model, train_at

class UntilItsStopButtonIsPressed:
    batches = 0

    def __call__(self, module, arguments, output):
        self.batches += module.training
        if self.batches == {batch} and module.training:
            Path({sign!r}).touch()
            while signal.getsignal(signal.SIGINT).__self__.signal is None:
                time.sleep(0.01)

student = create_model("CifarResNet-8", 10)
student.register_forward_hook(UntilItsStopButtonIsPressed())
results = train_at(json.loads({settings!r}), student=student)
print("it ended as", results["status"], results["stopped_by"], len(results["training_history"]))
"""
NEXT_CELL = """
import signal
print("the next cell", results["model"].training, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
EPOCHS, BATCHES = 3, 10


@pytest.fixture
def kernel():
    """A client of a fresh kernel, and what interrupts it."""
    pytest.importorskip("ipykernel", reason="the kernel of notebooks (ipykernel) is not installed")
    manager_of = pytest.importorskip("jupyter_client.manager", reason="jupyter_client is not installed")
    manager, client = manager_of.start_new_kernel(
        cwd=str(Path(__file__).parents[3]), kernel_name="python3", startup_timeout=300
    )
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_the_stop_button_of_a_notebook_ends_the_cell_with_what_there_is_and_the_next_cell_runs(
    settings, tmp_path, kernel
):
    manager, client = kernel
    settings = {
        **settings,
        "epochs": EPOCHS,
        "batch_size": 8,
        "cache_dir": str(tmp_path / "cache"),
    }
    sign, deadline = tmp_path / "training", time.monotonic() + BEFORE_IT_HANGS
    cell = CELL.format(settings=json.dumps(settings), sign=str(sign), batch=BATCHES + 4)
    message = client.execute(cell)
    while not sign.exists():
        assert time.monotonic() < deadline, until_idle(client, message, 1)
        time.sleep(0.05)
    manager.interrupt_kernel()
    printed = until_idle(client, message)
    told = re.search(r"it ended as (\w+) (\w+) (\d+)", printed)
    assert told is not None, printed
    assert told.groups()[:2] == ("stopped", "SIGINT")
    assert int(told[3]) == 1
    assert "KeyboardInterrupt" not in printed
    # a KeyboardInterrupt in the middle of a batch would end the run as well, but not save it there
    saved = read_checkpoint(tmp_path / "checkpoints" / "run_last.pth")["training"]
    assert saved["unfinished"]["batches"] == 4
    assert "the next cell False True" in until_idle(client, client.execute(NEXT_CELL))
