"""Progress bars: drawn for a person at a terminal, quiet everywhere else."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
from pathlib import Path

import pytest
from support import warm

pytestmark = pytest.mark.speed

ARGUMENTS = ["train", "--model", "CifarResNet-8", "--image-size", "16", "--epochs", "1", "--num-workers", "0"]
ARGUMENTS += ["--precision", "fp32", "--figure-freq", "0"]


@pytest.fixture
def command(tmp_path, few_digits):
    folders = ["--data-dir", str(few_digits), "--save-dir", str(tmp_path / "c"), "--log-dir", str(tmp_path / "l")]
    return ["-m", "attention_transfer", *ARGUMENTS, *folders, "--device", "cpu", "--print-freq", "1"]


def test_bars_are_drawn_on_a_terminal_and_lines_of_batches_are_not(command):
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = warm.Program(*command, output=Path(os.ttyname(end)))
    written = os.read(terminal, 4096)
    os.close(end)  # now that the program holds it
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            break
        if not piece:
            break
        written += piece
    os.close(terminal)
    assert process.wait(timeout=120) == 0
    text = written.decode()
    assert "epoch 1:" in text
    assert "accuracy" in text
    assert "batch 1/" not in text


def test_a_pipe_gets_lines_of_batches_and_no_bars(command):
    done = warm.run(*command)
    assert done.returncode == 0, done.stderr
    assert "epoch 1 batch 1/" in done.stdout
    assert "images/s" in done.stdout
    assert "\r" not in done.stdout + done.stderr
    assert "it/s" not in done.stderr
