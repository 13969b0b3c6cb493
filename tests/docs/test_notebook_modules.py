"""The import paths of existing notebooks, with the repository's root on sys.path and nothing installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CODE = """
from AT.main_new import (
    DEFAULT_CONFIG, compute_at_loss, create_at_config, extract_attention_maps, load_teacher_model, train_at,
    train_epoch, validate, visualize_attention_maps,
)
from model import prepare_dataloaders
from shared_utils import evaluate_model, load_model
import attention_transfer
print(attention_transfer.__file__)
"""


def test_the_names_that_notebooks_import_are_there(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{CODE}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ROOT / "attention_transfer" / "__init__.py")


def test_the_modules_only_export_again():
    import AT.main_new
    import attention_transfer
    import model
    import shared_utils

    for module in (AT.main_new, model, shared_utils):
        for name in module.__all__:
            assert getattr(module, name) is getattr(attention_transfer, name)


def test_every_public_name_exists_and_is_documented():
    import attention_transfer

    for name in attention_transfer.__all__:
        assert getattr(attention_transfer, name).__doc__, name
    assert set(attention_transfer.__all__) <= set(dir(attention_transfer))
