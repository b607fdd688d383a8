"""IFEval: instructions whose following is verified by rule.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models". The wording and
the four figures are the harness's; the rules are `judge/ifeval.py`, which says where they differ.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.benchmark import Benchmark, Generate, Reading
from selfevo_jax.evaluate.data import Data, Row, divided
from selfevo_jax.evaluate.file_task import FileSpec
from selfevo_jax.judge.checkers import Check
from selfevo_jax.judge.ifeval import INSTRUCTIONS, check

FILE = "ifeval/input_data.jsonl"


def _question(row: Row) -> str:
    return row["prompt"]


DATA = Data(
    files={"test": FILE},
    fields={"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list},
    source="github.com/google-research/google-research/tree/master/"
    "instruction_following_eval, licence Apache-2.0",
    hub=("google/IFEval", None),
    hub_splits={"test": "train"},
)


def _asked(row: Row) -> str:
    """The instructions by name. Raises ValueError for an unknown one or missing arguments."""
    names = row["instruction_id_list"]
    if len(names) != len(row["kwargs"]) or not names:
        raise ValueError("'instruction_id_list' and 'kwargs' are not of one length above 0")
    unknown = [name for name in names if name not in INSTRUCTIONS]
    if unknown:
        raise ValueError(f"the instruction {unknown[0]!r} is not known")
    if not all(isinstance(arguments, dict) for arguments in row["kwargs"]):
        raise ValueError("the field 'kwargs' does not hold an object for each instruction")
    try:
        check(row, "Any reply tells whether an instruction has its arguments.")
    except UserError as error:
        raise ValueError(str(error)) from error
    return ", ".join(names)


def _read(text: str, row: Row) -> Reading:
    scores: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, loose in (("strict", False), ("loose", True)):
        followed = check(row, text, loose=loose)
        scores[f"prompt_level_{name}_acc"] = float(all(followed))
        scores[f"inst_level_{name}_acc"] = sum(followed) / len(followed)
        counts[f"inst_level_{name}_acc"] = len(followed)
    return Reading(text.strip() or None, scores, counts)


def _mark(text: str, gold: str, meta: Mapping[str, Any]) -> Check:
    followed = check(meta, text)
    return Check(sum(followed) / len(followed), all(followed), text.strip() or None)


SPEC = FileSpec(
    name="ifeval",
    data=replace(DATA, files=divided(FILE), divide=_question),
    question=_question,
    gold=_asked,
    check=_mark,
    meta=("key", "prompt", "instruction_id_list", "kwargs"),
    metric="inst_level_strict_acc",
    max_new_tokens=1280,
)
BENCHMARKS = (
    Benchmark(
        name="ifeval",
        data=DATA,
        prompt=_question,
        target=_asked,
        ask=Generate({"none": _read}, max_new_tokens=1280),
        version="4.0",
    ),
)
