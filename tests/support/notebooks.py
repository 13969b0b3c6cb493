"""Cells that run in a real notebook's kernel."""

from __future__ import annotations

import time
from queue import Empty

from support.programs import BEFORE_IT_HANGS


def until_idle(client, message, seconds=BEFORE_IT_HANGS):
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
