"""`python -m attention_transfer` is the command `attention-transfer`."""

from __future__ import annotations

from attention_transfer.cli.app import main

if __name__ == "__main__":
    main()
