"""How well a judge agrees with people: labelled pairs, accuracy in both orders, intervals.

A length-only baseline (the longer output is better) stands beside every accuracy: where a judge is
not above it, it may know nothing else. Ties and failures are not right answers and stay in the
denominator; pairs on which people tie or disagree have no right answer and are left out, counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.data import Data, Kinds, Row, read_split
from selfevo_jax.evaluate.stats import Interval, wilson_interval
from selfevo_jax.judge.aggregate import Rate
from selfevo_jax.judge.health import Health, Known, health
from selfevo_jax.judge.pairwise import FIRST, ORDERS, SECOND, Comparison, Contest, called


@dataclass(frozen=True)
class Labelled:
    """A contest of which people have said who is better; `group` is its part of the set."""

    contest: Contest
    known: Known
    group: str


@dataclass(frozen=True)
class JudgeSet:
    """Where a set's rows are, and what each says: (instruction, first, second, label, group).

    A label is "first", "second", or None where people tie or disagree.
    """

    data: Data
    read: Callable[[Row], tuple[str, str, str, str | None, str]]


@dataclass(frozen=True)
class LabelledPairs:
    """The pairs in use, how many were left out for want of a label, and the hashes of the files."""

    pairs: tuple[Labelled, ...]
    left_out: int
    origin: Mapping[str, str]


@dataclass(frozen=True)
class BenchRow:
    """One line of the table. `orders` is the accuracy of each order alone, first output first."""

    name: str
    accuracy: Rate
    interval: Interval
    orders: tuple[Rate, Rate]
    length_only: Rate
    length_interval: Interval
    health: Health


def _llmbar(row: Row) -> tuple[str, str, str, str | None, str]:
    label = {1: FIRST, 2: SECOND}[row["label"]]
    return row["input"], row["output_1"], row["output_2"], label, row.get("subset", "")


def _pandalm(row: Row) -> tuple[str, str, str, str | None, str]:
    votes = Counter(row[f"annotator{number}"] for number in (1, 2, 3)).most_common()
    majority = votes[0][0] if votes[0][1] > 1 else 0
    instruction = f"{row['instruction']}\n\n{row['input']}".strip()
    label = {0: None, 1: FIRST, 2: SECOND}[majority]
    # A few outputs that read "True" have become a JSON true.
    first, second = str(row["response1"]), str(row["response2"])
    return instruction, first, second, label, row["motivation_app"]


def _judgebench(row: Row) -> tuple[str, str, str, str | None, str]:
    label = {"A>B": FIRST, "B>A": SECOND}[row["label"]]
    return row["question"], row["response_A"], row["response_B"], label, row["source"]


def _data(file: str, fields: Sequence[str], source: str, **kinds: Kinds) -> Data:
    return Data(files={"test": file}, fields=dict.fromkeys(fields, str) | kinds, source=source)


PAIR = ("input", "output_1", "output_2")
SETS: dict[str, JudgeSet] = {
    "llmbar": JudgeSet(
        _data("llmbar/llmbar.jsonl", PAIR, "princeton-nlp/LLMBar, MIT", subset=str, label=int),
        _llmbar,
    ),
    "mtbench": JudgeSet(
        _data("llmbar/mt_bench_human_pairs.jsonl", PAIR, "princeton-nlp/LLMBar, MIT", label=int),
        _llmbar,
    ),
    "pandalm": JudgeSet(
        _data(
            "pandalm/testset_v1.jsonl",
            ("instruction", "input", "motivation_app"),
            "WeOpenML/PandaLM, Apache-2.0",
            response1=(str, bool), response2=(str, bool),
            annotator1=int, annotator2=int, annotator3=int,
        ),
        _pandalm,
    ),
    "judgebench": JudgeSet(
        _data(
            "judgebench/judgebench.jsonl",
            ("question", "response_A", "response_B", "label", "source"),
            "ScalerLab/JudgeBench, MIT",
        ),
        _judgebench,
    ),
}  # fmt: skip


def labelled_pairs(name: str, where: str | None, limit: int | None = None) -> LabelledPairs:
    """The labelled pairs of a set, or `limit` of them spread evenly over it.

    `where` is the folder of all sets. Raises UserError for an unknown set or a missing or bad row.
    """
    if name not in SETS:
        raise UserError(f"judge set {name!r} must be one of {', '.join(SETS)}")
    rows = read_split(name, SETS[name].data, "test", where)
    pairs = []
    for number, (place, row) in enumerate(zip(rows.places, rows.rows, strict=True)):
        try:
            instruction, first, second, label, group = SETS[name].read(row)
        except KeyError as error:
            raise UserError(f"{place}: {name} knows no label {error}") from error
        if label is not None:
            contest = Contest(f"{name}/{number}", instruction, first, second)
            known = Known(len(first), len(second), label=label)
            pairs.append(Labelled(contest, known, group))
    count = len(pairs) if limit is None else min(limit, len(pairs))
    chosen = [pairs[place * len(pairs) // count] for place in range(count)]
    return LabelledPairs(tuple(chosen), len(rows.rows) - len(pairs), rows.origin)


def bench_rows(
    name: str, pairs: Sequence[Labelled], comparisons: Iterable[Comparison]
) -> list[BenchRow]:
    """One row for the set, and one for each part of it where it has a few."""
    found = list(comparisons)
    rows = [bench_row(name, pairs, found)]
    parts = list(dict.fromkeys(_part(pair.group) for pair in pairs))
    if name == "llmbar" and len(parts) > 1:
        for part in parts:
            inside = [pair for pair in pairs if _part(pair.group) == part]
            ids = {pair.contest.id for pair in inside}
            some = [comparison for comparison in found if comparison.item_id in ids]
            rows.append(bench_row(f"{name} {part}", inside, some))
    return rows


def _part(group: str) -> str:
    return group.split("_")[0].lower()


def bench_row(name: str, pairs: Sequence[Labelled], comparisons: Sequence[Comparison]) -> BenchRow:
    """Accuracy against the labels, and the judge's conduct on these pairs."""
    known = {pair.contest.id: pair.known for pair in pairs}
    conduct = health(comparisons, known)
    length_only = length_baseline([pair.known for pair in pairs])
    first, second = (_order_accuracy(comparisons, known, order) for order in ORDERS)
    return BenchRow(
        name=name,
        accuracy=conduct.agreement,
        interval=rate_interval(conduct.agreement),
        orders=(first, second),
        length_only=length_only,
        length_interval=rate_interval(length_only),
        health=conduct,
    )


def length_baseline(known: Iterable[Known]) -> Rate:
    """How often the longer output has the label; equal lengths are not right."""
    facts = list(known)
    right = [
        fact.label == (FIRST if fact.first_length > fact.second_length else SECOND)
        for fact in facts
        if fact.first_length != fact.second_length
    ]
    return Rate(sum(right), len(facts))


def rate_interval(rate: Rate) -> Interval:
    """Wilson's 95 % interval; all of [0, 1] where nothing was counted."""
    return wilson_interval(rate.hits, rate.n) if rate.n else Interval(0.0, 1.0)


def _order_accuracy(
    comparisons: Sequence[Comparison], known: Mapping[str, Known], order: str
) -> Rate:
    right = [
        called(ballot["p"], comparison.margin) == known[comparison.item_id].label
        for comparison in comparisons
        for ballot in comparison.ballots
        if ballot["order"] == order
    ]
    return Rate(sum(right), len(right))
