"""Natural Instructions: any task told in words, marked by ROUGE-L and exact match.

Mishra et al. 2022 and Wang et al. 2022 ("Super-NaturalInstructions"). The wording is that of the
latter's evaluation: the definition, two positive examples, the input. ROUGE-1, ROUGE-2 and BLEU
stand beside. Every task file below natural_instructions/ is read; rows take turns between tasks, so
that --limit sees all of them, and a quarter of each task is held out, by input.
"""

from collections.abc import Iterator

from selfevo_jax.evaluate.benchmark import Benchmark, Generate, Reading
from selfevo_jax.evaluate.data import Data, Row, divided
from selfevo_jax.evaluate.file_task import FileSpec, Meta
from selfevo_jax.evaluate.readings import likeness
from selfevo_jax.evaluate.rouge import best_rouge_l
from selfevo_jax.judge.checkers import Check, normalise

FILES = "natural_instructions/*.json"
EXAMPLES = 2
KINDS = {str: "texts", dict: "objects"}


def unpack(task: Row, place: str) -> Iterator[Row]:
    """The instances of one task file, each with its task's name, definition and examples."""
    for name, kind in {"Definition": str, "Positive Examples": dict, "Instances": dict}.items():
        held = task.get(name)
        if not isinstance(held, list) or not all(isinstance(part, kind) for part in held):
            raise ValueError(f"the field {name!r} is missing or no list of {KINDS[kind]}")
    name = place.rpartition("/")[2].partition(".")[0]
    shared = {"task": name, "definition": "\n".join(task["Definition"])}
    examples = [_example(example) for example in task["Positive Examples"]]
    for instance in task["Instances"]:
        yield shared | {"examples": examples[:EXAMPLES]} | instance


def _example(example: Row) -> Row:
    shown = {name: example.get(name) for name in ("input", "output")}
    if not all(isinstance(text, str) for text in shown.values()):
        raise ValueError("an example has no text 'input' and 'output'")
    return shown


def golds(row: Row) -> list[str]:
    """The accepted outputs. Raises ValueError when there is none."""
    found = row["output"]
    if not found or not all(isinstance(text, str) for text in found):
        raise ValueError("the field 'output' holds no strings")
    return list(found)


def _question(row: Row) -> str:
    """Wang et al. 2022, section 5 and appendix: definition, positive examples, the input."""
    parts = [f"Definition: {row['definition'].strip()}"]
    for number, example in enumerate(row["examples"], start=1):
        shown = f"Input: {example['input'].strip()}\nOutput: {example['output'].strip()}"
        parts.append(f"Positive Example {number} -\n{shown}")
    asked = f"Now complete the following example -\nInput: {row['input'].strip()}\nOutput:"
    return "\n\n".join([*parts, asked])


def _exact(text: str, outputs: list[str]) -> float:
    return float(normalise(text) in {normalise(output) for output in outputs})


def _figures(text: str, row: Row) -> dict[str, float]:
    found = likeness(text.strip(), golds(row))
    return {"rougeL": found.pop("rougeL"), "exact_match": _exact(text, golds(row)), **found}


def _read(text: str, row: Row) -> Reading:
    return Reading(text.strip() or None, _figures(text, row))


def _check(text: str, gold: str, meta: Meta) -> Check:
    score = best_rouge_l(text.strip(), golds(meta))
    return Check(score, _exact(text, golds(meta)) == 1.0, text.strip() or None)


DATA = Data(
    files=divided(FILES),
    fields={"task": str, "definition": str, "id": str, "input": str, "output": list},
    source="github.com/allenai/natural-instructions, licence Apache-2.0",
    unpack=unpack,
    divide=lambda row: row["input"],
)
SPEC = FileSpec(
    name="natural_instructions",
    data=DATA,
    question=_question,
    gold=lambda row: golds(row)[0],
    check=_check,
    meta=("output", "task"),
    metric="rougeL",
    max_new_tokens=128,
    cluster=lambda row: row["task"],
    figures=_figures,
)
BENCHMARKS = (
    Benchmark(
        name="natural_instructions",
        data=DATA,
        prompt=_question,
        target=lambda row: golds(row)[0],
        ask=Generate({"none": _read}, stop=("\n\n",), max_new_tokens=128),
        cluster=lambda row: row["task"],
    ),
)
