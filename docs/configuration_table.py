"""The README's table of settings, made from the model of the configuration.

python docs/configuration_table.py          prints the table
python docs/configuration_table.py --write  puts it into README.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from attention_transfer.config import Config, allowed_values

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- settings: made by docs/configuration_table.py -->\n", "<!-- end of settings -->"


def table() -> str:
    """A Markdown table: key, default, allowed values, meaning."""
    rows = [
        f"| `{key}` | `{field.default!r}` | {allowed_values(key).replace('|', '&#124;')} | {field.description} |"
        for key, field in Config.model_fields.items()
    ]
    return "\n".join(["| key | default | allowed | meaning |", "|---|---|---|---|", *rows]) + "\n"


def with_table(readme: str) -> str:
    """The README's text with the table as it is now."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + table() + END + after


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(with_table(README.read_text()))
    else:
        print(table())
