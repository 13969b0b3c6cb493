"""Several processes agree on when to stop; where one dies, none waits for it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from support import ranks

from attention_transfer import train_at
from attention_transfer.checkpoint import read_checkpoint

pytestmark = [pytest.mark.speed, pytest.mark.slow]

WORKER = Path(__file__).parents[2] / "support" / "workers" / "process_worker.py"


@pytest.fixture
def config(tmp_path, few_digits):
    return {
        "model": "CifarResNet-8", "data_dir": str(few_digits), "image_size": 16, "num_workers": 0, "epochs": 2,
        "device": "cpu", "precision": "fp32", "figure_freq": 0, "experiment_name": "two", "batch_size": 4,
        "cache_dir": str(tmp_path / "cache"), "save_dir": str(tmp_path / "checkpoints"),
        "log_dir": str(tmp_path / "logs"),
    }  # fmt: skip


def start(tmp_path, **settings):
    """Two processes of one run, without a launcher that would look after them; for a `with`."""
    options = tmp_path / "settings.json"
    options.write_text(json.dumps({**settings, "out": str(tmp_path / "out")}))
    return ranks.started(2, WORKER, options)


def test_a_signal_to_one_stops_all_at_the_same_batch_and_one_process_can_go_on(tmp_path, config):
    request = {"rank": 1, "passes": 5, "signal": int(signal.SIGTERM)}
    with start(tmp_path, do="signalled_run", config=config, **request) as processes:
        for process in processes:
            printed, said = process.communicate(timeout=300)
            assert process.returncode == 0, printed + said
    told = [json.loads((tmp_path / f"out.{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1] == {"status": "stopped", "stopped_by": "SIGTERM"}
    saved = read_checkpoint(tmp_path / "checkpoints" / "two_last.pth")["training"]
    assert saved["step"] == saved["unfinished"]["batches"] == 20
    assert saved["unfinished"]["images"] == 20 * 4 == int(saved["unfinished"]["sums"][0])
    assert not (tmp_path / "checkpoints" / ".two.lock").exists()

    alone = train_at({**config, "resume": "auto"})
    assert alone["status"] == "finished"
    assert "processes is 1 and was 2" in (tmp_path / "logs" / "two.log").read_text()


def test_where_one_dies_the_other_ends_with_an_error_within_a_minute(tmp_path, config):
    request = {"rank": 1, "passes": 5, "signal": int(signal.SIGKILL)}
    with start(tmp_path, do="signalled_run", config=config, **request) as processes:
        assert processes[1].wait(300) == -signal.SIGKILL
        printed, said = processes[0].communicate(timeout=60)
        assert processes[0].returncode != 0, printed + said
