"""Sets of answer pairs that people labelled, for measuring judges: loading and validation only.

LLMBar (Zeng et al. 2024), MT-Bench's human pairs (Zheng et al. 2023, as LLMBar processed them),
PandaLM (Wang et al. 2024; three annotators) and JudgeBench (Tan et al. 2025).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.data import Data, Row, read_split
from selfevo_jax.evaluate.task import check_choice


@dataclass(frozen=True)
class LabelledPair:
    """Two answers to one instruction. `label` is 1 or 2, the better one, or 0 for a tie.

    `votes` are the labels of the single annotators where they are told, `subset` the part of the
    set that figures are reported by.
    """

    id: str
    subset: str
    instruction: str
    output_1: str
    output_2: str
    label: int
    votes: tuple[int, ...] = ()


@dataclass(frozen=True)
class JudgeSet:
    """One file of pairs: its rows and how one becomes a `LabelledPair`."""

    data: Data
    pair: Callable[[Row, str], LabelledPair]


def _label(value: object, right: Mapping[object, int]) -> int:
    if isinstance(value, bool) or value not in right:
        raise ValueError(f"the label {value!r} is not one of {', '.join(map(repr, right))}")
    return right[value]


def _llmbar(row: Row, id: str) -> LabelledPair:
    label = _label(row["label"], {1: 1, 2: 2})
    subset = str(row.get("subset", "all"))
    return LabelledPair(id, subset, row["input"], row["output_1"], row["output_2"], label)


def _pandalm(row: Row, id: str) -> LabelledPair:
    votes = tuple(_label(row[f"annotator{n}"], {0: 0, 1: 1, 2: 2}) for n in (1, 2, 3))
    label, count = Counter(votes).most_common(1)[0]
    instruction = f"{row['instruction']}\n\n{row['input']}".strip()
    # Three different votes have no majority: PandaLM's authors count them as ties.
    first, second = str(row["response1"]), str(row["response2"])
    subset = row["motivation_app"]
    return LabelledPair(id, subset, instruction, first, second, label if count > 1 else 0, votes)


def _judgebench(row: Row, id: str) -> LabelledPair:
    label = _label(row["label"], {"A>B": 1, "B>A": 2})
    subset = row["source"]
    return LabelledPair(id, subset, row["question"], row["response_A"], row["response_B"], label)


PAIR = {"input": str, "output_1": str, "output_2": str, "label": int}
JUDGE_SETS = {
    "llmbar": JudgeSet(
        Data(
            {"test": "llmbar/llmbar.jsonl"},
            {"subset": str} | PAIR,
            "github.com/princeton-nlp/LLMBar, licence MIT",
        ),
        _llmbar,
    ),
    "mt_bench_human": JudgeSet(
        Data(
            {"test": "llmbar/mt_bench_human_pairs.jsonl"},
            PAIR,
            "github.com/princeton-nlp/LLMBar (Processed/MT-Bench), licence MIT",
        ),
        _llmbar,
    ),
    "pandalm": JudgeSet(
        Data(
            {"test": "pandalm/testset_v1.jsonl"},
            dict.fromkeys(("motivation_app", "instruction", "input"), str)
            | dict.fromkeys(("response1", "response2"), (str, bool))  # a reply of True is in it
            | dict.fromkeys(("annotator1", "annotator2", "annotator3"), int),
            "github.com/WeOpenML/PandaLM, licence Apache-2.0",
        ),
        _pandalm,
    ),
    "judgebench": JudgeSet(
        Data(
            {"test": "judgebench/judgebench.jsonl"},
            dict.fromkeys(("source", "question", "response_A", "response_B", "label"), str),
            "huggingface.co/datasets/ScalerLab/JudgeBench, licence MIT",
            hub=("ScalerLab/JudgeBench", None),
            hub_splits={"test": "gpt"},
        ),
        _judgebench,
    ),
}


def judge_pairs(name: str, data: str | Path | None) -> Iterator[LabelledPair]:
    """The pairs of a set, in order; ids are "NAME/place in the file".

    Raises UserError for an unknown set, missing data, or naming the first bad row.
    """
    check_choice(name, JUDGE_SETS, "judge set")
    chosen = JUDGE_SETS[name]
    read = read_split(name, chosen.data, "test", data)
    for number, (row, place) in enumerate(zip(read.rows, read.places, strict=True)):
        try:
            yield chosen.pair(row, f"{name}/{number}")
        except ValueError as error:
            raise UserError(f"{place}: {error}; mend the row or take it out") from error
