"""Open instructions with a reference answer, marked by ROUGE-L: Self-Instruct, Alpaca-like rows.

Wang et al. 2023, "Self-Instruct" (seed tasks, user-oriented instructions), and the instruction
set of rasbt/LLMs-from-scratch. CoNaLa (Yin et al. 2018) asks for one line of Python. ROUGE-1,
ROUGE-2 and BLEU stand beside. Judges tell more about open answers: see `selfevo judge winrate`.
"""

from collections.abc import Callable, Iterator

from selfevo_jax.evaluate.data import Data, Kinds, Row, divided
from selfevo_jax.evaluate.file_task import FileSpec, by_gold
from selfevo_jax.evaluate.readings import likeness
from selfevo_jax.evaluate.rouge import rouge_l
from selfevo_jax.judge.checkers import Check

ALPACA: dict[str, Kinds] = {"instruction": str, "input": str, "output": str}


def _question(row: Row) -> str:
    given = row["input"].strip()
    return f"{row['instruction'].strip()}\n\n{given}" if given else row["instruction"].strip()


def _instances(row: Row, place: str) -> Iterator[Row]:
    """The instances of a Self-Instruct row, each with its instruction."""
    instances = row.get("instances")
    if not isinstance(instances, list) or not all(isinstance(x, dict) for x in instances):
        raise ValueError("the field 'instances' is missing or no list of objects")
    for instance in instances:
        yield {"id": row.get("id"), "instruction": row.get("instruction")} | instance


def _gold(row: Row) -> str:
    if not row["output"].strip():
        raise ValueError("the reference 'output' is empty")
    return row["output"].strip()


def _check(text: str, gold: str) -> Check:
    score = rouge_l(text, gold)
    return Check(score, score == 1.0, text.strip() or None)


def _figures(text: str, row: Row) -> dict[str, float]:
    return likeness(text, [_gold(row)])


def _spec(
    name: str,
    file: str,
    source: str,
    unpack: Callable[[Row, str], Iterator[Row]] | None = None,
    train: str | None = None,
) -> FileSpec:
    data = Data(
        files={"train": train, "test": file} if train else divided(file),
        fields=ALPACA,
        source=source,
        unpack=unpack,
        divide=None if train else _question,
        keep=lambda row: bool(row["output"].strip()),
    )
    check = by_gold(_check)
    return FileSpec(name, data, _question, _gold, check, metric="rougeL", figures=_figures)


def _snippets(row: Row, place: str) -> Iterator[Row]:
    intent = row.get("rewritten_intent") or row.get("intent")
    asked = f"{intent}\nReply with one line of Python."
    yield {"instruction": asked, "input": "", "output": row.get("snippet")}


SPECS = (
    _spec(
        "self_instruct_seeds",
        "self_instruct/seed_tasks.jsonl",
        "github.com/yizhongw/self-instruct, licence Apache-2.0",
        _instances,
    ),
    _spec(
        "self_instruct",
        "self_instruct/user_oriented_instructions.jsonl",
        "github.com/yizhongw/self-instruct, licence Apache-2.0",
        _instances,
    ),
    _spec(
        "instruction_small",
        "instruction_small/instruction_data.jsonl",
        "github.com/rasbt/LLMs-from-scratch, licence Apache-2.0",
    ),
    _spec(
        "conala",
        "conala/test.jsonl",
        "conala-corpus.github.io, CC BY-SA 4.0",
        _snippets,
        train="conala/train.jsonl",
    ),
)
BENCHMARKS = ()
