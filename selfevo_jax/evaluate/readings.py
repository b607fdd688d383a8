"""Ways of reading a reply that several benchmarks share.

`found` and `same` follow the harness's `regex` filter and `exact_match` metric, so that a reply
read here and there gives the same score. Replies are hostile: expressions are linear in time,
and only the last `TAIL` characters are searched.
"""

import re
from collections.abc import Callable, Sequence

from selfevo_jax.evaluate.benchmark import Read, Reading
from selfevo_jax.evaluate.bleu import sentence_bleu
from selfevo_jax.evaluate.data import Row
from selfevo_jax.evaluate.rouge import best_rouge_l, rouge_n
from selfevo_jax.judge.checkers import TAIL, Check

# What exact_match drops from both sides in GSM8K, and in BIG-Bench Hard.
GSM8K_IGNORED = (r",", r"\$", r"(?s).*#### ", r"\.$")
BBH_IGNORED = (r"\.$", r",", r"\n", r"\\", r'"')


def found(pattern: str, text: str, which: int = 0) -> str | None:
    """The `which`-th match of `pattern`, its first group that is not empty; None without one."""
    matches = re.findall(pattern, text[-TAIL:])
    if not matches:
        return None
    match = matches[which]
    if isinstance(match, tuple):
        match = next((part for part in match if part), None)
    return match if match is None else match.strip()


def same(one: str, other: str, ignored: Sequence[str] = (), fold: bool = False) -> bool:
    """Equal after dropping what matches `ignored`, and case where `fold`."""
    for pattern in ignored:
        one, other = re.sub(pattern, "", one), re.sub(pattern, "", other)
    return one.lower() == other.lower() if fold else one == other


def extracted(
    pattern: str,
    gold: Callable[[Row], str],
    which: int = 0,
    ignored: Sequence[str] = (),
    fold: bool = False,
) -> Read:
    """Exact match between what `pattern` finds and `gold`."""

    def read(text: str, row: Row) -> Reading:
        parsed = found(pattern, text, which)
        right = parsed is not None and same(parsed, gold(row), ignored, fold)
        return Reading(parsed, {"exact_match": float(right)})

    return read


def whole(gold: Callable[[Row], str], ignored: Sequence[str] = (), fold: bool = False) -> Read:
    """Exact match between the whole reply and `gold`; a blank reply has no answer."""

    def read(text: str, row: Row) -> Reading:
        right = same(text, gold(row), ignored, fold)
        return Reading(text.strip() or None, {"exact_match": float(right)})

    return read


def checked(check: Callable[[str, Row], Check], metric: str = "exact_match") -> Read:
    """The verdict of a checker as a reading."""

    def read(text: str, row: Row) -> Reading:
        verdict = check(text, row)
        return Reading(verdict.parsed, {metric: verdict.score})

    return read


def likeness(text: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-L, -1 and -2, each the best over the references, and sentence BLEU over all of them."""
    return {
        "rougeL": best_rouge_l(text, references),
        "rouge1": max(rouge_n(text, reference, 1) for reference in references),
        "rouge2": max(rouge_n(text, reference, 2) for reference in references),
        "sentence_bleu": sentence_bleu(text, references),
    }
