"""MBPP and HumanEval rows as programs and tests, and the code in a chat reply."""

import re

from selfevo_jax.errors import UserError
from selfevo_jax.judge.sandbox.outcome import Outcome
from selfevo_jax.judge.sandbox.runner import Sandbox

_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([\w+-]*)[^\n]*$", re.MULTILINE)
_DEFINITION = re.compile(r"^(?:def|class)[ \t]+(\w+)", re.MULTILINE)
PYTHON = ("python", "py", "python3", "")


def extract_code(reply: str, entry_point: str | None = None) -> str:
    """The program in a chat reply.

    Of the blocks fenced with ``` or ~~~ and marked as Python or not at all: the last one that
    defines `entry_point`, else the first. A fence that is never closed ends with the reply. A
    reply without such a block is code as it stands.
    """
    blocks = [text for mark, text in _blocks(reply) if mark.lower() in PYTHON]
    if not blocks:
        return reply
    defines = re.compile(rf"^\s*(async\s+def|def|class)\s+{re.escape(entry_point or '')}\b", re.M)
    defining = [text for text in blocks if entry_point and defines.search(text)]
    return defining[-1] if defining else blocks[0]


def _blocks(reply: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block."""
    found, opened = [], None
    for fence in _FENCE.finditer(reply):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[2]:
            found.append((opened[2], reply[opened.end() + 1 : fence.start()]))
            opened = None
    if opened is not None:
        found.append((opened[2], reply[opened.end() + 1 :]))
    return found


def check_mbpp(sandbox: Sandbox, row: dict, completion: str) -> Outcome:
    """Runs a row's tests (Austin et al. 2021) against the program in `completion`.

    The tests reach the names that the row's own solution defines, since some need a class of it.
    """
    code, tests, setup = _fields(row, "code", "test_list", "test_setup_code")
    names = _defined(code, row)
    source = extract_code(completion, names[-1])
    return sandbox.run_tests(source, tests, setup, names)


def check_humaneval(sandbox: Sandbox, row: dict, completion: str) -> Outcome:
    """Runs a row's `check` (Chen et al. 2021) against its prompt continued by `completion`.

    `completion` is the rest of the function, or a reply with the whole function in a block.
    Helpers that the prompt defines are the prompt's in the tests, whatever the program makes of
    them.
    """
    prompt, test, name = _fields(row, "prompt", "test", "entry_point")
    code = prompt + "\n" * (not prompt.endswith("\n")) + extract_code(completion, name)
    return sandbox.run_tests(code, [test, f"check({name})"], prompt, name)


def _fields(row: dict, *names: str) -> list:
    missing = [name for name in names if name not in row]
    if missing:
        raise UserError(f"row {row.get('task_id')!r} has no {missing[0]!r}: it has {sorted(row)}")
    return [row[name] for name in names]


def _defined(code: str, row: dict) -> list[str]:
    """Top-level functions and classes of a reference solution."""
    names = _DEFINITION.findall(code)
    if not names:
        raise UserError(f"row {row.get('task_id')!r}: its reference code defines no function")
    return names
