"""BIG-Bench Hard: 27 tasks, with three chains of thought, three answers, or directly.

Suzgun et al. 2022, "Challenging BIG-Bench Tasks and Whether Chain-of-Thought Can Solve Them".
`bbh_cot_fewshot_TASK` (all: `bbh_cot_fewshot`, or `bbh`), `bbh_fewshot_TASK` and
`bbh_zeroshot_TASK` are the harness's wordings and readings. Descriptions and chains are those of
the authors' prompt files, read from bbh/cot_prompts.jsonl, which no data set on the hub has; the
canary line on top of them is not shown to the model.
"""

import re
import unicodedata
from functools import lru_cache, partial
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.benchmark import Benchmark, Generate, Read, Reading, Shots
from selfevo_jax.evaluate.data import Data, Row, divided, raw_rows
from selfevo_jax.evaluate.file_task import FileSpec, by_gold
from selfevo_jax.evaluate.readings import BBH_IGNORED, extracted, found, same, whole
from selfevo_jax.judge.checkers import TAIL, exact_match

ROWS = "bbh/bbh.jsonl"
SOURCE = "github.com/suzgunmirac/BIG-Bench-Hard, licence MIT"
CHAINS = (
    "bbh/cot_prompts.jsonl",
    f"rows with task and prompt, the text of each file of cot-prompts/ there; source: {SOURCE}",
)
THINK = "A: Let's think step by step."
LETTER, YES_NO, NUMBER = r"(\([A-Z]\))", r"\b(Yes|No|yes|no)\b", r"([-0-9]+)"
OPTIONS = (
    "date_understanding", "disambiguation_qa", "geometric_shapes", "hyperbaton",
    "logical_deduction_five_objects", "logical_deduction_seven_objects",
    "logical_deduction_three_objects", "movie_recommendation", "penguins_in_a_table",
    "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection",
    "snarks", "temporal_sequences", "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects",
)  # fmt: skip
PATTERNS = {
    "boolean_expressions": r"\b(True|False)\b",
    "causal_judgement": YES_NO,
    "dyck_languages": r"(?<= )([\" \[\(<{}>\)\]]+)|([\" \[\(<{}>\)\]]+)",
    "formal_fallacies": r"\b(valid|invalid)\b",
    "multistep_arithmetic_two": NUMBER,
    "navigate": YES_NO,
    "object_counting": NUMBER,
}
# Answers in other words: the first that occurs decides, "no" before "yes" where both match.
WORDS = {
    "sports_understanding": {"no": r"\b(no|not plausible)\b", "yes": r"\b(yes|plausible)\b"},
    "web_of_lies": {
        "no": r"\b(no|does not tell the truth|is not telling the truth)\b",
        "yes": r"\b(yes|tells the truth|is telling the truth)\b",
    },
}
TASKS = tuple(sorted([*OPTIONS, *PATTERNS, *WORDS, "word_sorting"]))


def _target(row: Row) -> str:
    return row["target"]


def _prompt(row: Row) -> str:
    return f"Q: {row['input']}\n{THINK}\n"


def _direct(row: Row) -> str:
    return f"Q: {row['input']}\nA:"


@lru_cache(maxsize=4)
def chains(path: Path) -> dict[str, tuple[str, tuple[Row, ...]]]:
    """task -> (description, examples with input and target) of the authors' prompt files.

    Raises UserError naming the line of a prompt that is not of their shape.
    """
    known = {}
    for place, row in raw_rows(path):
        _, mark, text = str(row.get("prompt", "")).partition("-----\n")
        description, *parts = re.split(r"\n\nQ: ", text.strip())
        cut = [part.partition(f"\n{THINK}") for part in parts]
        if not mark or not cut or not all(mark for _, mark, _ in cut) or "task" not in row:
            raise UserError(f"{place}: no prompt with a canary line, a description and chains")
        shots = tuple({"input": asked, "target": chain.strip()} for asked, _, chain in cut)
        known[row["task"]] = f"{description}\n\n", shots
    return known


def _mapped(words: dict[str, str]) -> Read:
    either = re.compile("|".join(words.values()))

    def read(text: str, row: Row) -> Reading:
        match = either.search(text[-TAIL:].lower())
        parsed = match and next(w for w, form in words.items() if re.search(form, match.group()))
        right = parsed is not None and same(parsed, _target(row), BBH_IGNORED, fold=True)
        return Reading(parsed, {"exact_match": float(right)})

    return read


def _sorted_words(text: str, row: Row) -> Reading:
    """The list's words in the order in which the reply names each for the last time."""
    listed = row["input"].split("List:")[-1].split()
    form = "|".join(rf"\b{re.escape(word)}\b" for word in listed)
    last = list(dict.fromkeys(reversed(re.findall(form, text[-TAIL:]))))[::-1]
    parsed = " ".join(last)
    right = same(parsed, _target(row), BBH_IGNORED, fold=True)
    return Reading(parsed or None, {"exact_match": float(right)})


def _option(text: str, row: Row) -> Reading:
    """The first letter in brackets, else the first option named by its text, else ": B"."""
    text = text[-TAIL:]
    options = [_bare(option) for option in re.findall(r"\([A-Z]\)([^\n^(]*)", row["input"])]
    parsed = found(LETTER, text) or _named(options, _bare(text))
    if parsed is None and options:
        last = chr(ord("A") + len(options) - 1)
        letter = found(rf":\s*([A-{last}])", text)
        parsed = letter and f"({letter})"
    right = parsed is not None and same(parsed, _target(row), BBH_IGNORED, fold=True)
    return Reading(parsed, {"exact_match": float(right)})


def _bare(text: str) -> str:
    """Lower case without punctuation, as options are compared."""
    kept = (c for c in text.strip().lower() if not unicodedata.category(c).startswith("P"))
    return "".join(kept)


def _named(options: list[str], text: str) -> str | None:
    forms = sorted(filter(None, options), key=len, reverse=True)
    match = re.search("|".join(map(re.escape, forms)), text) if forms else None
    return f"({chr(ord('A') + options.index(match.group()))})" if match else None


def _flexible(task: str) -> Read:
    if task in OPTIONS:
        return _option
    if task in WORDS:
        return _mapped(WORDS[task])
    if task == "word_sorting":
        return _sorted_words
    return extracted(PATTERNS[task], _target, ignored=BBH_IGNORED, fold=True)


def _data(task: str) -> Data:
    return Data(
        files={"test": ROWS},
        fields={"input": str, "target": str},
        source=SOURCE,
        hub=("SaylorTwift/bbh", task),
        keep=lambda row: row.get("task", task) == task,  # the hub's sets are of one task each
    )


def _thinking(task: str) -> Benchmark:
    answer = extracted("(?<=the answer is )(.*)(?=.)", _target)
    return Benchmark(
        name=f"bbh_cot_fewshot_{task}",
        data=_data(task),
        prompt=_prompt,
        target=_target,
        ask=Generate({"get-answer": answer}, stop=("</s>", "Q", "\n\n"), max_new_tokens=1024),
        num_fewshot=3,
        shots=Shots(file=(*CHAINS, partial(_chain, task)), pick="first"),
        delimiter="",
        groups=("bbh", "bbh_cot_fewshot"),
        version="4.0",
    )


def _chain(task: str, path: Path) -> tuple[str, tuple[Row, ...]]:
    known = chains(path)
    if task not in known:
        raise UserError(f"{path} has no prompt for {task}; it has {', '.join(known)}")
    return known[task]


def _ends(task: str, path: Path) -> tuple[str, tuple[Row, ...]]:
    """The same examples, each with the answer that its chain ends on."""
    description, shots = _chain(task, path)
    cut = [shot["target"].rpartition("the answer is ") for shot in shots]
    if not all(mark for _, mark, _ in cut):
        raise UserError(f"{path}: a chain of {task} does not end on 'the answer is'")
    ends = [end.removesuffix(".") for *_, end in cut]
    return description, tuple(s | {"target": end} for s, end in zip(shots, ends, strict=True))


def _description(task: str, path: Path) -> tuple[str, tuple[Row, ...]]:
    return _chain(task, path)[0], ()


def _shown(task: str) -> Benchmark:
    return Benchmark(
        name=f"bbh_fewshot_{task}",
        data=_data(task),
        prompt=_direct,
        target=_target,
        ask=Generate({"none": whole(_target)}, stop=("</s>", "Q", "\n\n")),
        num_fewshot=3,
        shots=Shots(file=(*CHAINS, partial(_ends, task)), pick="first"),
        groups=("bbh_fewshot",),
        version="2.0",
    )


def _answering(task: str) -> Benchmark:
    strict = whole(_target, BBH_IGNORED, fold=True)
    readings = {"strict-match": strict, "flexible-extract": _flexible(task)}
    return Benchmark(
        name=f"bbh_zeroshot_{task}",
        data=_data(task),
        prompt=_direct,
        target=_target,
        ask=Generate(readings, stop=("</s>", "Q:", "<|im_end|>")),
        # As there, examples that are asked for are test rows, but never the question itself.
        shots=Shots("test", file=(*CHAINS, partial(_description, task))),
        groups=("bbh_zeroshot",),
        version="3.0",
    )


SPEC = FileSpec(
    name="bbh",
    data=Data(
        files=divided(ROWS),
        fields={"task": str, "input": str, "target": str},
        source=SOURCE,
        divide=lambda row: row["input"],
    ),
    question=lambda row: row["input"],
    gold=_target,
    check=by_gold(lambda text, gold: exact_match(text, [gold])),
    style="steps",
    cluster=lambda row: row["task"],
)
BENCHMARKS = (*map(_thinking, TASKS), *map(_shown, TASKS), *map(_answering, TASKS))
