"""MATH: the answer in a reply, its normal form, and whether two answers are equal.

Strings are compared first (the rules of Hendrycks et al. 2021, applied alike to both), then exact
fractions; what is left goes to a child process with sympy that has a time and a memory limit. No
text is evaluated anywhere: `math_parse` reads a small grammar, and what it does not know is
compared as a string. Units are dropped, `10%` may be 10 or 0.1, lists of solutions have no order.
"""

import json
import re
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfevo_jax.judge.checkers import TAIL, final_answer
from selfevo_jax.judge.math_parse import Tree, rational, readings

WORKER = Path(__file__).with_name("math_worker.py")
MEMORY_BYTES = 1 << 30
START_SECONDS = 60.0  # importing sympy on a busy machine
MOST_TEXT = 2000  # characters of an answer that are looked at

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{|[^\s{])")
_SPACING = re.compile(
    r"\\[!,;: ]|~|\\q?quad\b|\\(?:left|right|[bB]igg?[lr]?|displaystyle)(?![A-Za-z])"
)
_FRACTION = re.compile(r"\\frac\s*(\d|\{[^{}]*\})\s*(\d|\{[^{}]*\})")
_ROOT = re.compile(r"\\sqrt\s*(\d)")
_WRAPPER = re.compile(r"\\(?:text|mbox|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
_UNIT_AT_END = re.compile(r"(?<=[\d})])\s*\\(?:text|mbox)\s*\{[^{}]*\}(?:\^\{?\d\}?)?\s*$")
_INNER_SPACE = re.compile(r"(?<!\d)\s+|\s+(?!\d)")


@dataclass(frozen=True)
class MathCheck:
    """What is said of one reply. `parsed` is the answer that was read in it."""

    name: Literal["right", "wrong", "unparsed", "timeout"]
    parsed: str | None

    @property
    def correct(self) -> bool:
        return self.name == "right"


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} or \fbox{...} that closes, or `\boxed 5`; else None."""
    text = text[-TAIL:]
    closing = _closing_braces(text)
    for match in reversed(list(_BOX.finditer(text))):
        start = match.end()
        if text[start] != "{":
            return re.split(r"[$\s]", text[start:], maxsplit=1)[0].rstrip(".,")
        if start in closing:
            return text[start + 1 : closing[start]].strip()
    return None


def _closing_braces(text: str) -> dict[int, int]:
    """Where each opening brace closes, for those that do; escaped braces do not count."""
    found, opened = {}, []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            found[opened.pop()] = match.start()
    return found


def normalise(answer: str) -> str:
    """One written form for answers that differ in notation only; nothing is computed."""
    text = _SPACING.sub("", answer.strip().strip("$").rstrip(". "))
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _UNIT_AT_END.sub("", text)
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°|\\degree|\\?\$|\\?%", "", text)
    text = _FRACTION.sub(lambda m: f"\\frac{{{m[1].strip('{}')}}}{{{m[2].strip('{}')}}}", text)
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    bare = _WRAPPER.sub(r"\1", text)
    if bare != text or bare.isalpha():
        text = bare.casefold()
    text = _INNER_SPACE.sub("", text)
    letter = re.fullmatch(r"\(([A-Za-z])\)", text)
    return letter[1].casefold() if letter else text.casefold() if len(text) == 1 else text


class MathChecker:
    """Compares answers; keeps one child process for those that need sympy. Thread-safe.

    `seconds` bounds one comparison; one that takes longer, or all the memory, is a `timeout`.
    Use it as a context manager, or call `close`.
    """

    def __init__(self, seconds: float = 5.0):
        self.seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen | None = None

    def __enter__(self) -> "MathChecker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child process."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()

    def check(self, reply: str, gold: str) -> MathCheck:
        r"""Whether the reply's last box, else its final answer, equals `gold`, itself unboxed."""
        boxed = last_boxed(reply)
        answer = (final_answer(reply) if boxed is None else boxed)[:MOST_TEXT]
        if not answer.strip():
            return MathCheck("unparsed", None)
        same = self.equal(answer, gold)
        return MathCheck("timeout" if same is None else "right" if same else "wrong", answer)

    def equal(self, a: str, b: str) -> bool | None:
        """Whether two answers (LaTeX, without box) are equal; None when that took too long."""
        if normalise(a) == normalise(b):
            return True
        pairs = [(x, y) for x in readings(a) for y in readings(b)]
        if any(x == y for x, y in pairs):
            return True
        known = [(rational(x), rational(y)) for x, y in pairs]
        if any(x is not None and x == y for x, y in known):
            return True
        sure = [x is not None and y is not None for x, y in known]
        left = [pair for pair, done in zip(pairs, sure, strict=True) if not done]
        return self._ask(left) if left else False

    def _ask(self, pairs: list[tuple[Tree, Tree]]) -> bool | None:
        with self._lock:
            if self._child is None:
                self._child = _start()
                if self._exchange([], START_SECONDS) is None:
                    return None
            return self._exchange(pairs, self.seconds)

    def _exchange(self, pairs: list, seconds: float) -> bool | None:
        """One question to the child; ends the child and says None when no answer comes."""
        child, deadline = self._child, time.monotonic() + seconds
        try:
            child.stdin.write(json.dumps(pairs).encode() + b"\n")
            child.stdin.flush()
            ready, _, _ = select.select([child.stdout], [], [], deadline - time.monotonic())
            line = child.stdout.readline() if ready else b""
        except BrokenPipeError:
            line = b""
        if not line:
            self.close()
            return None
        return json.loads(line)


def _start() -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-I", str(WORKER), str(MEMORY_BYTES)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/",
    )  # fmt: skip
