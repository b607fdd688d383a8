"""HumanEval: the rest of a Python function from its head, run in the sandbox; pass@k.

Chen et al. 2021, "Evaluating Large Language Models Trained on Code". `humaneval` and
`humaneval_instruct` have the harness's wordings. With --repeats N and a temperature, pass@k is
the paper's unbiased estimate for k = 1, 10, 100 up to N.
"""

from selfevo_jax.evaluate.benchmark import Benchmark, Generate
from selfevo_jax.evaluate.benchmarks.code import CheckCode, passes
from selfevo_jax.evaluate.data import Data, Row
from selfevo_jax.judge.sandbox import Outcome, Sandbox, check_humaneval

DATA = Data(
    files={"test": "humaneval/HumanEval.jsonl"},
    fields={
        "task_id": str, "prompt": str, "entry_point": str, "canonical_solution": str, "test": str,
    },
    source="github.com/openai/human-eval, licence MIT",
    hub=("openai/openai_humaneval", None),
)  # fmt: skip
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


def _ask(check: CheckCode) -> Generate:
    readings = {"create_test": passes(check, "canonical_solution")}
    return Generate(readings, stop=STOP, max_new_tokens=1024, code=True)


def _check_in_block(sandbox: Sandbox, row: dict, reply: str) -> Outcome:
    """The reply began within a block of code (`_begun`): what follows its end is no code."""
    return check_humaneval(sandbox, row, reply.partition("```")[0])


def _target(row: Row) -> str:
    return f"{row['test']}\ncheck({row['entry_point']})"


def _asked(row: Row) -> str:
    opening = "Write a solution to the following problem and make sure that it passes the tests:"
    return f"{opening}\n```python\n{row['prompt']}\n```\n"


def _begun(row: Row) -> str:
    return f"Here is the completed function:\n```python\n{row['prompt']}\n"


BENCHMARKS = (
    Benchmark(
        name="humaneval",
        data=DATA,
        prompt=lambda row: row["prompt"],
        target=_target,
        ask=_ask(check_humaneval),
        version="1.0",
    ),
    Benchmark(
        name="humaneval_instruct",
        data=DATA,
        prompt=_asked,
        target=_target,
        ask=_ask(_check_in_block),
        prefix=_begun,
        version="4.0",
    ),
)
