"""MBPP and HumanEval: their own solutions pass, broken ones do not; code is found in replies."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.judge.sandbox import (
    Outcome,
    Sandbox,
    check_humaneval,
    check_mbpp,
    extract_code,
)

SAMPLE = 6  # every sixth MBPP row by default, all under -m slow


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox()
    except UserError as error:
        pytest.skip(str(error))


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_all(check, sandbox: Sandbox, rows: list[dict], programs: list[str]) -> list[Outcome]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda pair: check(sandbox, *pair), zip(rows, programs, strict=True)))


def names(outcomes: list[Outcome], rows: list[dict]) -> dict:
    """What did not pass, by task."""
    pairs = zip(rows, outcomes, strict=True)
    return {row["task_id"]: (x.name, x.message) for row, x in pairs if not x.passed}


@pytest.mark.slow
def test_every_humaneval_solution_passes(sandbox, shared_data):
    rows = read(shared_data / "humaneval/HumanEval.jsonl")
    assert len(rows) == 124
    outcomes = check_all(check_humaneval, sandbox, rows, [r["canonical_solution"] for r in rows])
    assert names(outcomes, rows) == {}


def test_mbpp_solutions_pass_and_the_next_row_s_do_not(sandbox, shared_data):
    rows = read(shared_data / "mbpp/mbpp_test.jsonl")[::SAMPLE]
    assert len(rows) == 64
    outcomes = check_all(check_mbpp, sandbox, rows, [row["code"] for row in rows])
    assert names(outcomes, rows) == {}
    wrong = rows[::4]
    outcomes = check_all(check_mbpp, sandbox, wrong, [rows[n * 4 - 1]["code"] for n in range(16)])
    assert {x.name for x in outcomes} == {"failed"}


@pytest.mark.slow
def test_every_mbpp_solution_passes_its_challenge_too(sandbox, shared_data):
    rows = read(shared_data / "mbpp/mbpp_test.jsonl")
    assert len(rows) == 380
    more = [{**r, "test_list": r["test_list"] + r["challenge_test_list"]} for r in rows]
    outcomes = check_all(check_mbpp, sandbox, more, [row["code"] for row in rows])
    assert names(outcomes, rows) == {}


MUTATIONS = ["    return None\n", "    return 0\n", "    raise ValueError\n", "    return self\n"]


def test_broken_humaneval_solutions_fail(sandbox, shared_data):
    rows = read(shared_data / "humaneval/HumanEval.jsonl")[::5]
    mutations = [MUTATIONS[n % 4] + row["canonical_solution"] for n, row in enumerate(rows)]
    outcomes = check_all(check_humaneval, sandbox, rows, mutations)
    assert {x.name for x in outcomes} == {"failed"}, outcomes


def test_helpers_of_the_prompt_are_the_prompt_s(sandbox, shared_data):
    row = next(
        r for r in read(shared_data / "humaneval/HumanEval.jsonl") if r["task_id"].endswith("/32")
    )
    cheat = "    return 0.0\n\ndef poly(xs, x):\n    return 0.0\n"
    assert check_humaneval(sandbox, row, cheat).name == "failed"


def test_a_whole_function_in_a_reply(sandbox):
    row = {"task_id": "t/0", "prompt": 'def f(x):\n    """Twice."""\n', "entry_point": "f",
           "test": "def check(c):\n    assert c(2) == 4\n"}  # fmt: skip
    reply = "Sure!\n```python\ndef f(x):\n    return 2 * x\n```\nThat is all."
    assert check_humaneval(sandbox, row, reply).passed
    assert check_humaneval(sandbox, row, "    return 2 * x\n").passed
    assert check_humaneval(sandbox, row, "    return x\n").name == "failed"
    assert check_humaneval(sandbox, row, "I cannot do that.").name == "failed"


def test_a_row_without_a_field_is_named(sandbox):
    with pytest.raises(UserError, match="7.*test_list"):
        check_mbpp(sandbox, {"task_id": 7, "code": "", "test_setup_code": ""}, "")
    row = {"task_id": 8, "code": "x = 1", "test_list": ["1"], "test_setup_code": ""}
    with pytest.raises(UserError, match="8.*reference"):
        check_mbpp(sandbox, row, "")


@pytest.mark.parametrize(
    "reply, code",
    [
        ("x = 1", "x = 1"),
        ("a\n```python\nx = 1\n```\nb", "x = 1\n"),
        ("a\n```\nx = 1\n```", "x = 1\n"),
        ("a\n~~~py\nx = 1\n~~~", "x = 1\n"),
        ("```bash\nls\n```\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n", "x = 1\n"),
        ("```python\nx = '''\n````\n'''\n```", "x = '''\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("```python\ny = 0\n```\n```python\nx = 1\n```", "y = 0\n"),
        ("```python\nprint(f(1))\n```\n```python\ndef f(x): pass\n```", "def f(x): pass\n"),
        ("```python\ndef f(x): 1\n```\nbetter:\n```python\ndef f(x): 2\n```", "def f(x): 2\n"),
        ("```python\ndef ff(x): 1\n```", "def ff(x): 1\n"),
        ("use `x`", "use `x`"),
        ("", ""),
        ("```bash\nls\n```", "```bash\nls\n```"),
    ],
)
def test_extract_code(reply, code):
    assert extract_code(reply, "f") == code
