"""API keys: from the environment or a private file, and never printed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from selfevo_jax.errors import UserError

HIDDEN = "***"
MOST_BYTES = 4096


class Secret:
    """A key. It prints as ***, is not equal to a text, and cannot be copied into a file."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise UserError("a key must be one word of printable ASCII; check where it was stored")
        self._text = text

    def reveal(self) -> str:
        """The key itself, for the one place that sends or compares it."""
        return self._text

    def scrub(self, content: bytes) -> bytes:
        """`content` with *** wherever it holds the key (servers repeat keys in their errors)."""
        return content.replace(self._text.encode(), HIDDEN.encode())

    def __repr__(self) -> str:
        return f"Secret({HIDDEN})"

    def __reduce__(self):
        raise TypeError("a Secret is not written to files or sent to other processes")


def secret_from_environment(variable: str) -> Secret:
    """The key in an environment variable. Raises UserError when it is not set."""
    text = os.environ.get(variable, "").strip()
    if not text:
        raise UserError(f"the environment variable {variable} is not set; put the key into it")
    return Secret(text)


def secret_from_file(path: Path) -> Secret:
    """The key in a file that only its owner can read (mode 600 or 400). Raises UserError."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            mode = stat.S_IMODE(status.st_mode)
            if not stat.S_ISREG(status.st_mode) or mode & 0o177:
                raise UserError(f"key file {path} has mode {mode:03o}; run: chmod 600 {path}")
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"key file {path} cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"key file {path} is longer than {MOST_BYTES} bytes; it is no key")
    return Secret(content.decode("ascii", "replace").strip())
