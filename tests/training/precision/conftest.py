"""Each test hears what is said once, and reads it as lines."""

from __future__ import annotations

import logging

import pytest

from attention_transfer.logs import log_once


@pytest.fixture(autouse=True)
def nothing_is_said():
    log_once.cache_clear()


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "attention_transfer")
    return lambda: [record.getMessage() for record in caplog.records]
