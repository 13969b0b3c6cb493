"""docs/reliability.md names tests; they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = sorted(set(re.findall(r"\btest_\w+\.py\b", PAGE)))


@pytest.mark.parametrize("name", NAMED)
def test_a_test_file_that_the_page_names_exists_and_has_tests(name):
    (path,) = (ROOT / "tests").rglob(name)
    assert path.is_file()
    assert re.search(r"^def test_", path.read_text(), re.MULTILINE)


def test_every_promise_in_a_table_names_a_test_or_a_command():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    rows = [row for row in rows if not row.startswith("| what is changed")]
    assert len(rows) > 10
    assert [row for row in rows if not re.search(r"test_\w+\.py", row.split("|")[-2])] == []


def test_every_make_target_and_link_of_the_page_exists():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make (\w+)`", PAGE)) <= set(targets)
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
