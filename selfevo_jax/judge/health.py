"""Can a judge be trusted? Counts of what it does besides judging well.

A judge that calls everything a tie never flips and one that fails never errs, so the figures only
mean something side by side. Each is a count of a count; nothing is left out silently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from selfevo_jax.judge.aggregate import Rate
from selfevo_jax.judge.pairwise import FAILURE, FIRST, SECOND, TIE, Comparison, called


@dataclass(frozen=True)
class Known:
    """What is known of a contest besides its texts.

    Lengths in characters; `first_by`, `second_by` the models that wrote the outputs; `label` the
    one that people (or a rule) call better: "first" or "second".
    """

    first_length: int
    second_length: int
    first_by: str | None = None
    second_by: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Health:
    """A judge's conduct.

    `flips`: of the references asked in both orders, those where the orders name different
    outputs. `shown_first`: of single-order calls that name one, those that name the output shown
    first. `longer`: of verdicts on outputs of unequal length, those for the longer one, and
    `longer_label` the same of the labels. `own`: of verdicts between an output of the judge's own
    model and another's, those for its own, and `own_label` the same of the labels there.
    `agreement`: verdicts as labelled, of all labelled contests (a tie or a failure does not
    agree). `mass`: what the labels had of the probability, on average. `cut`, `neutralised`:
    contests whose texts were shortened or made harmless.
    """

    contests: int
    failures: Rate
    ties: Rate
    flips: Rate
    shown_first: Rate
    longer: Rate
    longer_label: Rate
    own: Rate
    own_label: Rate
    agreement: Rate
    mass: float | None
    cut: int
    neutralised: int
    reasons: Mapping[str, int]


def health(
    comparisons: Iterable[Comparison],
    known: Mapping[str, Known] | None = None,
    own_name: str | None = None,
) -> Health:
    """The conduct of one judge. `known` by item id, `own_name` what its model is called there."""
    found = list(comparisons)
    facts = known or {}
    told = [(c, facts[c.item_id]) for c in found if c.item_id in facts]
    verdicts = Counter(c.verdict for c in found)
    masses = [b["mass"] for c in found for b in c.ballots if b["mass"] is not None]
    return Health(
        contests=len(found),
        failures=Rate(verdicts[FAILURE], len(found)),
        ties=Rate(verdicts[TIE], len(found)),
        flips=_rate(flip for c in found for flip in _flips(c)),
        shown_first=_rate(seen for c in found for seen in _shown_first(c)),
        longer=_rate(_named(c.verdict, _longer(k)) for c, k in told),
        longer_label=_rate(_named(k.label, _longer(k)) for _, k in told),
        own=_rate(_named(c.verdict, _own(k, own_name)) for c, k in told),
        own_label=_rate(_named(k.label, _own(k, own_name)) for _, k in told),
        agreement=_rate(c.verdict == k.label for c, k in told if k.label in (FIRST, SECOND)),
        mass=sum(masses) / len(masses) if masses else None,
        cut=sum(bool(c.cut) for c in found),
        neutralised=sum(bool(c.neutralised) for c in found),
        reasons=dict(Counter(c.failure for c in found if c.failure is not None)),
    )


@dataclass(frozen=True)
class Mark:
    """What a judge gave one output of `length` characters; `own`: whether its own model wrote it
    (None: not known)."""

    value: float
    length: int
    own: bool | None = None


@dataclass(frozen=True)
class Leaning:
    """What the marks of single outputs go along with, whatever the outputs are worth.

    `length`: Spearman's rank correlation of mark and length, in [-1, 1] (None where one of them is
    the same everywhere). `own`, `others`: mean marks of outputs by the judge's own model and by
    other models, with their numbers (None: no such output).
    """

    n: int
    length: float | None
    own: tuple[float, int] | None
    others: tuple[float, int] | None


def leaning(marks: Iterable[Mark]) -> Leaning:
    """The leaning of one judge that marks outputs one at a time."""
    found = list(marks)
    values, lengths = [m.value for m in found], [m.length for m in found]
    vary = len(set(values)) > 1 and len(set(lengths)) > 1
    return Leaning(
        len(found),
        float(spearmanr(values, lengths).statistic) if vary else None,
        *(_mean([m.value for m in found if m.own is own]) for own in (True, False)),
    )


def _mean(values: list[float]) -> tuple[float, int] | None:
    return (float(np.mean(values)), len(values)) if values else None


def agreement_between(one: Iterable[Comparison], other: Iterable[Comparison]) -> Rate:
    """How often two judges give the same verdict, of the contests that neither failed."""
    verdicts = {c.item_id: c.verdict for c in one}
    pairs = ((verdicts[c.item_id], c.verdict) for c in other if c.item_id in verdicts)
    return _rate(a == b for a, b in pairs if FAILURE not in (a, b))


def _flips(comparison: Comparison) -> list[bool]:
    """For each reference with both orders: do they name different outputs?"""
    calls: dict[tuple[int | None, int], list[str]] = {}
    for ballot in comparison.ballots:  # those of a jury say whose they are
        key = ballot.get("juror"), ballot["reference"]
        calls.setdefault(key, []).append(called(ballot["p"], comparison.margin))
    return [set(both) == {FIRST, SECOND} for both in calls.values() if FAILURE not in both]


def _shown_first(comparison: Comparison) -> list[bool | None]:
    return [
        _named(called(b["p"], comparison.margin), FIRST if b["order"] == "ab" else SECOND)
        for b in comparison.ballots
    ]


def _longer(known: Known) -> str | None:
    if known.first_length == known.second_length:
        return None
    return FIRST if known.first_length > known.second_length else SECOND


def _own(known: Known, name: str | None) -> str | None:
    if name is None or (known.first_by == name) == (known.second_by == name):
        return None
    return FIRST if known.first_by == name else SECOND


def _named(verdict: str | None, wanted: str | None) -> bool | None:
    """Whether a verdict names the wanted output; None where it names none, or none is wanted."""
    if wanted is None or verdict not in (FIRST, SECOND):
        return None
    return verdict == wanted


def _rate(seen: Iterable[bool | None]) -> Rate:
    values = [value for value in seen if value is not None]
    return Rate(sum(values), len(values))
