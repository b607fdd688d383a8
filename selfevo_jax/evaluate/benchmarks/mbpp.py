"""MBPP: short Python functions from one sentence and three tests, run in the sandbox.

Austin et al. 2021, "Program Synthesis with Large Language Models". `mbpp` has the harness's
wording; its three examples are the set's own rows 2, 3 and 4, which the authors set aside for it.
"""

from dataclasses import replace

from selfevo_jax.evaluate.benchmark import Benchmark, Generate, Shots
from selfevo_jax.evaluate.benchmarks.code import passes, verdict
from selfevo_jax.evaluate.data import Data, Row, divided
from selfevo_jax.evaluate.file_task import FileSpec
from selfevo_jax.judge.sandbox import check_mbpp

DATA = Data(
    files={"test": "mbpp/mbpp_test.jsonl"},
    fields={
        "text": str, "code": str, "task_id": int, "test_setup_code": str, "test_list": list,
    },
    source="github.com/google-research/google-research/tree/master/mbpp, licence CC BY 4.0",
    hub=("google-research-datasets/mbpp", "full"),
)  # fmt: skip
EXAMPLES = (
    {
        "text": "Write a function to find the similar elements from the given two tuple lists.",
        "code": "def similar_elements(test_tup1, test_tup2):\r\n"
        "  res = tuple(set(test_tup1) & set(test_tup2))\r\n  return (res) ",
        "test_list": [
            "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)",
            "assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)",
            "assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)",
        ],
    },
    {
        "text": "Write a python function to identify non-prime numbers.",
        "code": "import math\r\ndef is_not_prime(n):\r\n    result = False\r\n"
        "    for i in range(2,int(math.sqrt(n)) + 1):\r\n        if n % i == 0:\r\n"
        "            result = True\r\n    return result",
        "test_list": [
            "assert is_not_prime(2) == False",
            "assert is_not_prime(10) == True",
            "assert is_not_prime(35) == True",
        ],
    },
    {
        "text": "Write a function to find the largest integers from a given list of numbers using "
        "heap queue algorithm.",
        "code": "import heapq as hq\r\ndef heap_queue_largest(nums,n):\r\n"
        "  largest_nums = hq.nlargest(n, nums)\r\n  return largest_nums",
        "test_list": [
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],3)==[85, 75, 65] ",
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],2)==[85, 75] ",
            "assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],5)"
            "==[85, 75, 65, 58, 35]",
        ],
    },
)


def _tests(row: Row) -> str:
    """The row's three tests, one a line. Raises ValueError where there are not three."""
    if len(row["test_list"]) < 3:
        raise ValueError("the field 'test_list' holds fewer than three tests")
    return "\n".join(row["test_list"][:3])


def _prompt(row: Row) -> str:
    opening = f"You are an expert Python programmer, and here is your task: {row['text']}"
    return f"{opening} Your code should pass these tests:\n\n{_tests(row)}\n[BEGIN]\n"


def _question(row: Row) -> str:
    return f"{row['text'].strip()}\nYour code should pass these tests:\n{_tests(row)}"


def _target(row: Row) -> str:
    return _tests(row) if "task_id" in row else f"{row['code']}\n[DONE]"


SPEC = FileSpec(
    name="mbpp",
    data=replace(DATA, files=divided(DATA.files["test"]), divide=_question),
    question=_question,
    gold=_tests,
    check=verdict(check_mbpp, "code"),
    meta=tuple(DATA.fields),
    metric="pass@1",
    max_new_tokens=512,
    code=True,
)
BENCHMARKS = (
    Benchmark(
        name="mbpp",
        data=DATA,
        prompt=_prompt,
        target=_target,
        ask=Generate({"none": passes(check_mbpp, "code")}, stop=("[DONE]",), code=True),
        num_fewshot=3,
        shots=Shots(rows=EXAMPLES, pick="first"),
        delimiter="",
        version="1.0",
    ),
)
