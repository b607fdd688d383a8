"""ROUGE-L, as Natural Instructions and most of the field compute it.

Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries". Words are runs of lower-case
ASCII letters and digits and are not stemmed; the value equals `rougeL` of Google's `rouge-score`
package with its defaults.
"""

import re
from collections.abc import Sequence

from selfevo_jax.judge.checkers import TAIL

_WORD = re.compile(r"[a-z0-9]+")
LONGEST = 4_000  # words of either text; the table costs their product


def words(text: str) -> list[str]:
    """The words that ROUGE compares."""
    return _WORD.findall(text[-TAIL:].lower())[:LONGEST]


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words; 0 when either text has none."""
    found, wanted = words(text), words(reference)
    if not found or not wanted:
        return 0.0
    shared = _common(found, wanted)
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall) if shared else 0.0


def best_rouge_l(text: str, references: Sequence[str]) -> float:
    """The best over several references."""
    return max(rouge_l(text, reference) for reference in references)


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
