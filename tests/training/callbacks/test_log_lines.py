"""Every line of a run is printed once, whatever logging the user has set up, and reaches the user's own files."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from support import warm

from attention_transfer import train_at
from attention_transfer.logs import LIBRARY, ConsoleHandler, is_printed_elsewhere, log_to_stdout

pytestmark = pytest.mark.slow

PROGRAM = """
import json, logging, sys
from attention_transfer import train_at

for number, setup in enumerate(json.loads({setups!r})):
    for logger in (logging.root, logging.getLogger("attention_transfer")):
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
    for stream in (sys.stdout, sys.stderr):
        print(f"{mark}{{number}}", file=stream, flush=True)
    exec(setup)
    train_at({{**json.loads({settings!r}), "experiment_name": f"run{{number}}"}})
"""
MARK = "=== setup "
BEGINS, ENDS = " begins: CifarResNet-8", "finished after 1 of 1 epochs"
"""One line is said before the run's log is open and played back to it (the cut of val), these two are not."""
EARLY = "val and test cut from"
SETUPS = {
    "nothing": "",
    "basicConfig": "logging.basicConfig()",
    "a basicConfig of warnings": "logging.basicConfig(); logging.root.handlers[0].setLevel(logging.WARNING)",
    "a basicConfig to stdout": "logging.basicConfig(stream=sys.stdout, format='mine %(message)s')",
    "a handler of the library's": "logging.getLogger('attention_transfer').addHandler(logging.StreamHandler())",
    "a file": "logging.basicConfig(filename=f'mine{number}.log')",
    "a file and the console": "logging.basicConfig(filename=f'mine{number}.log'); "
    "logging.root.addHandler(logging.StreamHandler())",
    "a filter against the library": "logging.basicConfig(); "
    "logging.root.handlers[0].addFilter(lambda record: not record.name.startswith('attention_transfer'))",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, few_digits):
    """The folder of a run after each of the setups, one after the other, and the lines printed on each stream."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {
        "model": "CifarResNet-8", "data_dir": str(few_digits), "image_size": 16, "num_workers": 0, "epochs": 1,
        "device": "cpu", "precision": "fp32", "figure_freq": 0, "save_dir": "checkpoints", "log_dir": "logs",
    }  # fmt: skip
    setups, settings = json.dumps(list(SETUPS.values())), json.dumps(settings)
    done = warm.run("-c", PROGRAM.format(mark=MARK, setups=setups, settings=settings), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, *(text.split(MARK)[1:] for text in (done.stdout, done.stderr))


@pytest.mark.parametrize("name", SETUPS)
def test_every_line_is_printed_once_and_to_the_users_file_too(runs, name):
    folder, out, err = runs
    number = list(SETUPS).index(name)
    printed = out[number] + err[number]
    for line in (EARLY, BEGINS, ENDS):
        assert printed.count(line) == 1, printed
        assert (folder / "logs" / f"run{number}.log").read_text().count(line) == 1
        if ".log'" in SETUPS[name]:
            assert (folder / f"mine{number}.log").read_text().count(line) == 1
    if "stdout" in name:
        assert f"mine {ENDS}" in out[number]


def test_caplog_hears_a_run_and_its_lines_are_printed_all_the_same(settings, caplog, capsys):
    train_at({**settings, "model": "CifarResNet-8", "precision": "fp32"})
    printed = capsys.readouterr().out
    for line in (EARLY, BEGINS, ENDS):
        assert sum(line in message for message in caplog.messages) == 1
        assert printed.count(line) == 1


def test_after_a_run_no_handler_of_it_is_left(settings):
    before = list(LIBRARY.handlers), list(logging.root.handlers), LIBRARY.level, LIBRARY.propagate
    train_at({**settings, "model": "CifarResNet-8", "precision": "fp32"})
    assert before == (list(LIBRARY.handlers), list(logging.root.handlers), LIBRARY.level, LIBRARY.propagate)


@pytest.fixture
def root_handler():
    """Adds a handler to the root logger for the time of a test."""
    added = []

    def add(handler):
        logging.root.addHandler(handler)
        added.append(handler)
        return handler

    yield add
    for handler in added:
        logging.root.removeHandler(handler)


def record(level=logging.INFO):
    return logging.LogRecord("attention_transfer.somewhere", level, __file__, 1, "told", None, None)


def test_prefilling_steps_aside_too(root_handler, capsys):
    root_handler(logging.StreamHandler(sys.stdout))
    with log_to_stdout():
        logging.getLogger("attention_transfer.somewhere").info("told")
    assert capsys.readouterr().out.count("told") == 1


def test_a_console_that_rich_writes_to_counts(root_handler):
    rich_logging = pytest.importorskip("rich.logging")
    rich_console = pytest.importorskip("rich.console")
    ours = ConsoleHandler()
    assert not is_printed_elsewhere(record(), ours)
    root_handler(rich_logging.RichHandler(console=rich_console.Console(file=sys.stderr)))
    assert is_printed_elsewhere(record(), ours)


def test_a_stream_in_memory_a_closed_one_and_a_file_are_no_console(root_handler, tmp_path):
    import io

    closed = (tmp_path / "closed").open("w")
    closed.close()
    for handler in (logging.StreamHandler(io.StringIO()), logging.StreamHandler(closed), logging.NullHandler()):
        root_handler(handler)
    assert not is_printed_elsewhere(record(), ConsoleHandler())


def test_what_the_root_does_not_get_it_does_not_print(root_handler, monkeypatch):
    root_handler(logging.StreamHandler(sys.stderr))
    monkeypatch.setattr(LIBRARY, "propagate", False)
    assert not is_printed_elsewhere(record(), ConsoleHandler())
