"""ROUGE-1, ROUGE-2 and ROUGE-L, as Natural Instructions and most of the field compute them.

Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries". Words are runs of lower-case
ASCII letters and digits and are not stemmed; the values equal those of Google's `rouge-score`
package with its defaults.
"""

import re
from collections import Counter
from collections.abc import Sequence

from selfevo_jax.judge.checkers import TAIL

_WORD = re.compile(r"[a-z0-9]+")
LONGEST = 4_000  # words of either text; the table costs their product


def words(text: str) -> list[str]:
    """The words that ROUGE compares."""
    return _WORD.findall(text[-TAIL:].lower())[:LONGEST]


def runs(said: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of `n` words occurs."""
    return Counter(zip(*(said[start:] for start in range(n)), strict=False))


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words; 0 when either text has none."""
    found, wanted = words(text), words(reference)
    if not found or not wanted:
        return 0.0
    return _f1(_common(found, wanted), len(found), len(wanted))


def rouge_n(text: str, reference: str, n: int) -> float:
    """F1 of the runs of `n` words in common; 0 when either text has none."""
    found, wanted = (runs(words(side), n) for side in (text, reference))
    return _f1((found & wanted).total(), found.total(), wanted.total())


def best_rouge_l(text: str, references: Sequence[str]) -> float:
    """The best over several references."""
    return max(rouge_l(text, reference) for reference in references)


def _f1(shared: int, found: int, wanted: int) -> float:
    """2PR / (P + R) of precision P = shared / found and recall R = shared / wanted."""
    return 2 * shared / (found + wanted) if shared else 0.0


def _common(one: Sequence[str], two: Sequence[str]) -> int:
    """Length of the longest common subsequence (Hyyro 2004's bit-parallel recurrence).

    Python's integers hold the whole row of the table, so a word costs one addition.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(one)) - 1
    row = full
    for word in two:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return len(one) - row.bit_count()
