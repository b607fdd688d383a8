"""Do training records contain test questions? Shared n-grams and equal questions, with the spans.

Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C: a test item is flagged
when it shares 13 words in a row with the training text; words are compared without case and
punctuation, but for operators: "5 - 3" is not "5 + 3". Such flags are often false alarms
(boilerplate, quotations), so the spans are told and people decide; n-grams that many test items
share are boilerplate and do not count.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.data import of_row, raw_rows, read_split
from selfevo_jax.evaluate.tasks import BENCHMARKS, drawn

NGRAM = 13
WITHIN = 8  # words of a question that is looked for anywhere in a text (the paper's least n)
BOILERPLATE = 10  # test items that share an n-gram which then is part of the task's wording
DRAWN = 300  # questions of a task that makes them without end
SHOWN = 5  # matches of a task that are printed
# An operator that stands apart or between figures is a word; a hyphen inside a word is not.
_ENDS = re.compile(r"(?<=[.?!])[\"')]*\s+")
_WORD = re.compile(r"\w+|(?<=[\s\d)])[-+*/^=<>](?=[\s\d(])")


@dataclass(frozen=True)
class Match:
    """A training record and a test item that share `span`; `exact`: the question is equal."""

    record: str
    item: str
    span: str
    exact: bool


@dataclass(frozen=True)
class Contamination:
    """What a training set shares with a task's test items.

    `items` of `tested` are flagged, `exact` of them by an equal question. `matches` has one line
    for each pair of record and item, the longest shared span in it.
    """

    task: str
    records: int
    tested: int
    items: int
    exact: int
    matches: tuple[Match, ...]


def check_overlap(
    task: str,
    records: Iterable[tuple[str, Sequence[str]]],
    items: Iterable[tuple[str, str]],
    n: int = NGRAM,
) -> Contamination:
    """Compares training records (name, texts) with test questions (name, text).

    A question shorter than `n` words is flagged where all of it stands in a record's text; one of
    fewer than `WITHIN` only where it is equal to a text, to a line or sentence of one, or to what
    follows a colon there ("Question: ..."). Memory: the test's n-grams. Raises UserError for n < 1.
    """
    if n < 1:
        raise UserError(f"an overlap of {n} words is none; give at least 1")
    tested = [(name, _words(text)) for name, text in items]
    known = _places(tested, n)
    questions: dict[tuple[str, ...], list[int]] = {}
    for place, (_, words) in enumerate(tested):
        questions.setdefault(tuple(words), []).append(place)
    matches: list[Match] = []
    count = 0
    for record, texts in records:
        count += 1
        # Of each item one match, the longest: an equal question is in the prompt of a pair once.
        found = [m for text in texts for m in _matches(record, text, tested, known, questions, n)]
        best = sorted(found, key=lambda match: (match.exact, len(match.span)))
        matches += {match.item: match for match in best}.values()
    flagged = {match.item for match in matches}
    exact = {match.item for match in matches if match.exact}
    return Contamination(task, count, len(tested), len(flagged), len(exact), tuple(matches))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.replace("\\n", "\n").lower())  # some files hold a backslash and an n


def _grams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return (tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _places(tested: Sequence[tuple[str, list[str]]], n: int) -> dict[tuple[str, ...], list[int]]:
    """n-gram -> test items that hold it, without those of the task's own wording."""
    places: dict[tuple[str, ...], list[int]] = {}
    for place, (_, words) in enumerate(tested):
        for gram in set(_grams(words, n)):
            places.setdefault(gram, []).append(place)
    return {gram: found for gram, found in places.items() if len(found) < BOILERPLATE}


def _matches(
    record: str,
    text: str,
    tested: Sequence[tuple[str, list[str]]],
    known: Mapping[tuple[str, ...], list[int]],
    questions: Mapping[tuple[str, ...], list[int]],
    n: int,
) -> Iterator[Match]:
    words = _words(text)
    pieces = [tuple(words), *(tuple(_words(part)) for part in _parts(text))]
    for length in range(WITHIN, n):
        pieces += _grams(words, length)
    equal = {place for piece in pieces for place in questions.get(piece, ()) if piece}
    for place, start, length in _spans(words, known, n):
        if place not in equal:
            span = " ".join(words[start : start + length])
            whole = length >= len(tested[place][1])
            yield Match(record, tested[place][0], span, whole)
    for place in sorted(equal):
        yield Match(record, tested[place][0], " ".join(tested[place][1]), True)


def _parts(text: str) -> Iterator[str]:
    """The lines of a text, the sentences in them, and what follows a colon there."""
    for line in text.splitlines():
        yield line
        sentences = _ENDS.split(line)
        yield from sentences
        for sentence in (line, *sentences):
            if ":" in sentence:
                yield sentence.partition(":")[2]
                yield sentence.rpartition(":")[2]


def _spans(
    words: Sequence[str], known: Mapping[tuple[str, ...], list[int]], n: int
) -> Iterator[tuple[int, int, int]]:
    """(test item, start, length) of the longest run of shared n-grams with each item."""
    longest: dict[int, tuple[int, int]] = {}
    running: dict[int, int] = {}  # test item -> where its present run began
    for start, gram in enumerate(_grams(words, n)):
        here = known.get(gram, ())
        running = {place: running.get(place, start) for place in here}
        for place, begun in running.items():
            length = start + n - begun
            if length > longest.get(place, (0, 0))[1]:
                longest[place] = begun, length
    yield from ((place, *span) for place, span in longest.items())


def texts_of(value: object) -> list[str]:
    """Every string in a record: a record of any format is read the same way."""
    if isinstance(value, str):
        return [value] if value else []
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(value, Mapping | list | tuple):
        return [text for part in parts for text in texts_of(part)]
    return []


def items_of(task: str, data: str | None) -> list[tuple[str, str]]:
    """(place, question) of a benchmark's test rows, without the words around them."""
    if task.startswith("rg:"):
        benchmark, rows = drawn(task, DRAWN, 0)
    else:
        benchmark = BENCHMARKS[task]
        rows = read_split(task, benchmark.data, benchmark.split, data)
    return [
        (place, _bare(row) or of_row(benchmark.prompt, row, place))
        for place, row in zip(rows.places, rows.rows, strict=True)
    ]


# The question alone, by the fields that hold it: passages are quoted everywhere. LogiQA's passage
# (a row with options) belongs to the question, which is one of a few set phrases.
QUESTIONS = (
    ("Body", "Question"), ("context", "question", "options"), ("instruction", "input"),
    ("question",), ("problem",), ("input",), ("instruction",), ("text",), ("prompt",),
)  # fmt: skip


def _bare(row: Mapping[str, object]) -> str:
    """The row's question without the words around it, empty where no field is known."""
    names = next((names for names in QUESTIONS if all(name in row for name in names)), ())
    return "\n".join(str(row[name]) for name in names if isinstance(row[name], str)).strip()


def check_file(path: Path, task: str, data: str | None, n: int = NGRAM) -> Contamination:
    """Compares the records of a JSON-lines (JSON, CSV, Parquet) file with a task's test."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the file of training records")
    records = ((place, texts_of(row)) for place, row in raw_rows(path))
    return check_overlap(task, records, items_of(task, data), n)


def report_lines(found: Sequence[Contamination]) -> Iterator[str]:
    """What to print: counts of each task, and the first spans."""
    for result in found:
        yield (
            f"{result.task}: {result.items} of {result.tested} test items share words with "
            f"{result.records} training records, {result.exact} of them the whole question"
        )
        for match in islice(
            sorted(result.matches, key=lambda m: (not m.exact, -len(m.span))), SHOWN
        ):
            kind = "equal" if match.exact else "shared"
            yield f"  {kind}: {match.record} and {match.item}: {match.span[:300]!r}"
        repeated = Counter(match.record for match in result.matches)
        if repeated:
            yield f"  in {len(repeated)} training records"
