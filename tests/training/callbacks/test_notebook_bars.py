"""In a real notebook's kernel: without ipywidgets there are text bars and no warning."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from support.notebooks import until_idle

pytestmark = pytest.mark.slow

IMPORTS = [
    "from attention_transfer import train_at, create_model, load_model",
    "import attention_transfer.checkpoint",
    "from model import prepare_dataloaders; from shared_utils import load_model",
]
RUN = """
import json
results = train_at(json.loads({settings!r}))
print("it ended as", results["status"])
"""


@pytest.fixture
def client():
    """A client of a fresh kernel."""
    pytest.importorskip("ipykernel", reason="the kernel of notebooks (ipykernel) is not installed")
    manager_of = pytest.importorskip("jupyter_client.manager", reason="jupyter_client is not installed")
    manager, client = manager_of.start_new_kernel(cwd=str(Path(__file__).parents[3]), kernel_name="python3")
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.skipif(importlib.util.find_spec("ipywidgets") is not None, reason="ipywidgets is installed here")
def test_a_notebook_without_ipywidgets_is_not_told_so_and_has_text_bars(client, settings, tmp_path):
    for line in IMPORTS:
        assert until_idle(client, client.execute(line)) == ""
    settings = {**settings, "model": "CifarResNet-8", "precision": "fp32", "cache_dir": str(tmp_path / "cache")}
    printed = until_idle(client, client.execute(RUN.format(settings=json.dumps(settings))), seconds=120)
    assert "it ended as finished" in printed
    assert "100%|" in printed
    assert "epoch/s" in printed or "s/epoch" in printed
    assert "IProgress" not in printed
    assert "Warning" not in printed
