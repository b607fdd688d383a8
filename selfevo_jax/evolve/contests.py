"""RefEval's plumbing: references, who is compared with whom, scores, best against worst, win rates.

Pure functions of rows. A score is a candidate's mean probability of being better than those it was
compared with, both orders averaged (`judge.aggregate`), or its likeness to the reference.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.rouge import rouge_l
from selfevo_jax.evaluate.stats import mean_interval
from selfevo_jax.evolve.lessons import lesson
from selfevo_jax.evolve.pairs import pair_of
from selfevo_jax.judge.aggregate import (
    best_and_worst,
    candidate_scores,
    count_wins,
    length_controlled,
)
from selfevo_jax.judge.health import Known, health
from selfevo_jax.judge.pairwise import Comparison, Contest
from selfevo_jax.records import Example, Pair, Prompt, Row, Sample, Vector, Verdict

DIGITS = 6
BASE = "base"  # what the policy of round 0 is called


def text_of(prompt: Prompt) -> str:
    """What is asked."""
    return prompt.messages[-1]["content"]


def gold_reference(prompt: Prompt) -> list[Row]:
    """The gold answer as the reference."""
    if not prompt.answer:
        raise UserError(f"prompt {prompt.id} has no gold answer; set references.by to teacher")
    return [_reference(prompt, prompt.answer)]


def replied_reference(row: tuple[Sample, Prompt]) -> list[Row]:
    """A teacher's reply as the reference."""
    return [_reference(row[1], row[0].text)]


def file_reference(row: Mapping[str, Any]) -> Row:
    """A row {question, reference} of a file."""
    if not all(isinstance(row.get(name), str) for name in ("question", "reference")):
        raise UserError(f"a row of a file of references has question and reference: {row!s:.80}")
    question = row["question"].strip()
    return Row.make(source_id=question, values={"text": row["reference"]})


def found_reference(prompt: Prompt, rows: Sequence[Row]) -> list[Row]:
    """The file's reference to this very question: found by its text, never by its line."""
    asked = text_of(prompt).strip()
    texts = [row.values["text"] for row in rows if row.source_id == asked]
    if len(texts) != 1:
        raise UserError(f"the file has {len(texts)} references, not one, to {asked[:60]!r}")
    return [_reference(prompt, texts[0])]


def _reference(prompt: Prompt, text: str) -> Row:
    return Row.make(source_id=prompt.id, values={"text": text})


def reference_lesson(row: tuple[Prompt, Row]) -> list[Example]:
    """The question and its reference; nothing where that is empty."""
    prompt, reference = row
    text = reference.values["text"]
    return [lesson(prompt, reference, prompt.messages, text)] if text.strip() else []


def reference_text(row: tuple[Prompt, Row]) -> str:
    """What is embedded of a reference."""
    return row[1].values["text"]


def sample_text(sample: Sample) -> str:
    """What is embedded of a candidate."""
    return sample.text


def candidates(samples: Sequence[Sample], finished: bool) -> list[Sample]:
    """Samples with different texts that are not blank; with `finished` none that was cut off."""
    kept: dict[str, Sample] = {}
    for sample in samples:
        if sample.text.strip() and not (finished and sample.finish == "length"):
            kept.setdefault(sample.text.strip(), sample)
    return list(kept.values())


def matches(
    row: tuple[Sequence[Sample], Prompt, Row], finished: bool, comparisons: int, seed: int
) -> list[Row]:
    """Who is compared with whom: all, or about `comparisons` others for each candidate."""
    samples, prompt, reference = row
    known = candidates(samples, finished)
    shown = {"instruction": text_of(prompt), "reference": reference.values["text"]}
    return [
        Row.make(
            source_id=prompt.id,
            values={
                "first_id": known[i].id,
                "second_id": known[j].id,
                "first": known[i].text,
                "second": known[j].text,
                **shown,
            },
        )
        for i, j in drawn(len(known), comparisons, f"{seed}/{prompt.id}")
    ]


def drawn(n: int, comparisons: int, seed: str) -> list[tuple[int, int]]:
    """Pairs of n candidates: all of them, or of a seeded, connected graph.

    In the graph everyone meets `comparisons` others (one more where n and that are odd): a ring in
    random order, then rings with longer steps, and the opposite candidate where one is missing.
    """
    if comparisons <= 0 or comparisons >= n - 1:
        return [(i, j) for i in range(n) for j in range(i + 1, n)]
    order = list(range(n))
    random.Random(f"selfevo-tournament-{seed}").shuffle(order)
    steps = [*range(1, max(comparisons, 2) // 2 + 1)]
    if comparisons > 2 and comparisons % 2:
        steps.append(n // 2)
    edges = {(place, (place + step) % n) for step in steps for place in range(n)}
    return sorted({tuple(sorted((order[a], order[b]))) for a, b in edges})


def contest_of(row: Row) -> Contest:
    """A match as the judge sees it."""
    v = row.values
    return Contest(row.id, v["instruction"], v["first"], v["second"], (v["reference"],))


def judged_scores(rows: Sequence[tuple[Row, Comparison]]) -> list[Row]:
    """The mean win probability of every candidate of a question, and the failed comparisons."""
    compared = [(r.values["first_id"], r.values["second_id"], c) for r, c in rows]
    names = dict.fromkeys(name for first, second, _ in compared for name in (first, second))
    failed = sum(comparison.p_first is None for _, _, comparison in compared)
    return [_scores(rows[0][0].source_id, candidate_scores(names, compared), len(rows), failed)]


def rouge_scores(row: tuple[Sequence[Sample], Prompt, Row], finished: bool) -> list[Row]:
    """ROUGE-L of every candidate to the reference."""
    samples, prompt, reference = row
    known = candidates(samples, finished)
    text = reference.values["text"]
    return [_scores(prompt.id, {s.id: rouge_l(s.text, text) for s in known}, 0, 0)]


def embedding_scores(
    row: tuple[Sequence[tuple[Sample, Vector]], Prompt, Vector], finished: bool
) -> list[Row]:
    """The cosine of every candidate's embedding with the reference's."""
    placed, prompt, reference = row
    wanted = {sample.id for sample in candidates([sample for sample, _ in placed], finished)}
    target = np.array(reference.values)
    scores = {s.id: float(np.dot(v.values, target)) for s, v in placed if s.id in wanted}
    return [_scores(prompt.id, scores, 0, 0)]


def _scores(prompt_id: str, scores: Mapping[str, float], compared: int, failed: int) -> Row:
    rounded = {name: round(score, DIGITS) for name, score in scores.items()}
    counts = {"comparisons": compared, "failed": failed}
    return Row.make(source_id=prompt_id, values={"scores": rounded, **counts})


def by_question(samples: Sequence[Sample]) -> list[Sample]:
    """Samples of one question side by side, in the order in which the questions first occur."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt_id, []).append(sample)
    return [sample for group in groups.values() for sample in group]


def best_against_worst(
    rows: Sequence[tuple[Sample, Prompt]],
    scored: Sequence[Row],
    least_gap: float,
    rejected_by: str = "policy",
) -> list[Pair]:
    """Of every scored question the best over the worst candidate, joined by their ids.

    With `rejected_by` base the best of the policy's over the worst of the base's, which are one
    while the policy is the base.
    """
    samples = {sample.id: (sample, prompt) for sample, prompt in rows}
    older = {name for name, (sample, _) in samples.items() if sample.policy == BASE}
    if rejected_by == "policy" or len(older) == len(samples):
        older = set()
    pairs = []
    for row in scored:
        found = best_and_worst(row.values["scores"], least_gap, older)
        if found is not None:
            best, prompt = samples[found[0]]
            pairs.append(pair_of(prompt, best, samples[found[1]][0]))
    return pairs


def duel(row: tuple[Sample, Sample, Prompt]) -> Contest:
    """A policy's answer against the first policy's; the gold answer is the reference, if any."""
    answer, other, prompt = row
    references = (prompt.answer,) if prompt.answer else ()
    return Contest(answer.id, text_of(prompt), answer.text, other.text, references)


def accuracy_row(verdicts: Sequence[Verdict], name: str) -> list[Row]:
    """The share of right answers as a candidate policy's value."""
    value = sum(verdict.correct for verdict in verdicts) / len(verdicts)
    return [Row.make(source_id=name, values={"policy": name, "value": value, "n": len(verdicts)})]


def preference_row(comparisons: Sequence[Comparison], name: str) -> list[Row]:
    """The mean probability of being preferred as a candidate policy's value; failures left out."""
    chances = count_wins(comparisons).chances
    value = sum(chances) / len(chances) if chances else 0.5
    return [Row.make(source_id=name, values={"policy": name, "value": value, "n": len(chances)})]


def win_rates(rows: Sequence[tuple[Sample, Sample, Prompt, Comparison]]) -> list[Row]:
    """How every policy's answers fare against the first policy's, and how the judge behaves.

    win_rate counts ties as halves; chance is the mean probability with its 95 % interval;
    length_controlled what it would be at equal length. flips: contests in which the two orders
    name different answers; longer: verdicts for the longer answer.
    """
    return [
        Row.make(source_id=name, values={"policy": name, **_fared(found)})
        for name in dict.fromkeys(answer.policy for answer, *_ in rows)
        if (found := [row for row in rows if row[0].policy == name])
    ]


def _fared(rows: Sequence[tuple[Sample, Sample, Prompt, Comparison]]) -> dict[str, Any]:
    compared = [row[3] for row in rows]
    wins = count_wins(compared)
    values: dict[str, Any] = {"n": len(rows), "failed": wins.failures, "ties": wins.ties}
    if not wins.chances:
        return values
    gaps = [len(a.text) - len(b.text) for a, b, _, c in rows if c.p_first is not None]
    interval = mean_interval(wins.chances)
    known = {c.item_id: Known(len(a.text), len(b.text)) for a, b, _, c in rows}
    conduct = health(compared, known)
    return values | {
        "win_rate": wins.win_rate,
        "chance": wins.chance,
        "chance_low": interval.low,
        "chance_high": interval.high,
        "length_controlled": length_controlled(wins.chances, gaps),
        "flips": conduct.flips.share,
        "longer": conduct.longer.share,
        "letters": sum(len(answer.text) for answer, *_ in rows) / len(rows),
    }


def scoring_row(rows: Sequence[Row], name: str) -> list[Row]:
    """What a judge's scoring came to: comparisons, failures, questions with a gap."""
    gaps = [max(s.values()) - min(s.values()) for r in rows if (s := r.values["scores"])]
    totals = {k: sum(row.values[k] for row in rows) for k in ("comparisons", "failed")}
    mean = sum(gaps) / len(gaps) if gaps else 0.0
    values = {"judge": name, "questions": len(rows), **totals, "mean_gap": mean}
    return [Row.make(source_id=name, values=values)]


def as_they_are(rows: Sequence[Row]) -> list[Row]:
    """The rows of a table that needs no more made of them."""
    return list(rows)
