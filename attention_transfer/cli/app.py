"""The command line `attention-transfer`: its commands and exit codes.

The exit code is 0 after success, 2 after an error of the library (printed in one sentence) or a wrong flag, and 130
after Ctrl-C.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from attention_transfer import __version__
from attention_transfer.cli.commands.cache import cache
from attention_transfer.cli.commands.demo import demo
from attention_transfer.cli.commands.evaluate import evaluate
from attention_transfer.cli.commands.info import info
from attention_transfer.cli.commands.layers import layers
from attention_transfer.cli.commands.train import train
from attention_transfer.cli.commands.visualize import visualize
from attention_transfer.cli.repeated import tell
from attention_transfer.errors import AttentionTransferError

FAILED, INTERRUPTED = 2, 130

app = App(
    name="attention-transfer",
    version=__version__,
    help="A small image classifier learns to look where a large one looks.",
    help_format="plaintext",
    error_formatter=tell,
)
commands: list[Callable[..., int]] = [train, evaluate, visualize, layers, demo, info]
for order, command in enumerate(commands):
    app.command(command, sort_key=order)
app.command(cache)


@app.meta.default
def run(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(help="show where an error comes from", negative="", show_default=False)] = False,
) -> int:
    """Run a command; the result is the exit code of the process."""
    command, arguments, _ = app.parse_args(tokens, exit_on_error=False)
    try:
        return command(*arguments.args, **arguments.kwargs) or 0
    except (AttentionTransferError, OSError) as error:
        print(traceback.format_exc() if debug else f"error: {sentence(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def sentence(error: AttentionTransferError | OSError) -> str:
    """An error's message, without the traceback that a loader's worker puts before it."""
    return str(error).rpartition(f"{type(error).__name__}: ")[2] if str(error).startswith("Caught ") else str(error)


def main(tokens: Sequence[str] | None = None) -> None:
    """The entry point; `tokens` are the command line arguments.

    Raises:
        SystemExit: always, with the exit code.
    """
    try:
        command, arguments, _ = app.meta.parse_args(tokens, exit_on_error=False)
        code = command(*arguments.args, **arguments.kwargs) or 0
    except CycloptsError:
        # cyclopts has already printed the error
        code = FAILED
    sys.exit(code)
