"""Text of others on a terminal: nothing in it moves the cursor, changes colours or reorders a line.

What a model, a data file, a server or a folder's name says is printed through these.
"""

import unicodedata

from rich.console import Console
from rich.table import Table
from rich.text import Text


def escape_controls(text: str) -> str:
    """Control, format and bidi characters (all of Unicode C but newline) as \\x1b, \\u202e, ..."""
    return "".join(
        char if char == "\n" or unicodedata.category(char)[0] != "C" else _escaped(char)
        for char in text
    )


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def say(console: Console, text: str) -> None:
    """Lines in which names, reasons and replies may come from others."""
    console.print(escape_controls(text), markup=False)


class PlainTable(Table):
    """A table whose cells others may have written: no markup in them, no control characters."""

    def add_row(self, *cells: str, **options) -> None:
        """A row of texts, shown as they are."""
        super().add_row(*(Text(escape_controls(cell)) for cell in cells), **options)
