"""BLEU of one reply, as sacrebleu computes it.

Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation". The value is
that of `sacrebleu.sentence_bleu` with its defaults, over 100: words as mteval-v13a splits them,
runs of 1 to 4 words as far as the reply has them, and NIST's smoothing, by which the precision of
the first length without a match counts half a match, of the next a quarter. A mean of these is not
the BLEU of a corpus, which adds the counts of all replies up first.
"""

import math
import re
import string
from collections.abc import Sequence
from functools import reduce
from operator import or_

from selfevo_jax.evaluate.rouge import runs
from selfevo_jax.judge.checkers import TAIL

LONGEST = 4  # words in a run
_MARKS = "".join(sorted(set(string.punctuation) - set("',-.")))
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
# Apart from the rest of a word stand: every mark but the four that also join words; a full stop or
# comma that is not between figures; a hyphen after a figure.
_APART = (
    (re.compile(f"([{re.escape(_MARKS)}])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def words(text: str) -> list[str]:
    """The words that BLEU compares; case counts."""
    text = text[-TAIL:].rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for written, meant in _ENTITIES:
        text = text.replace(written, meant)
    text = f" {text} "
    for pattern, spaced in _APART:
        text = pattern.sub(spaced, text)
    return text.split()


def sentence_bleu(text: str, references: Sequence[str]) -> float:
    """BLEU of a reply in [0, 1] against all references together; 0 without a word in common."""
    said, known = words(text), [words(reference) for reference in references]
    precisions, missed = [], 0
    for n in range(1, min(LONGEST, len(said)) + 1):
        found = runs(said, n)
        right = (found & reduce(or_, (runs(reference, n) for reference in known))).total()
        missed += right == 0
        precisions.append((right or 0.5**missed) / found.total())
        if n == 1 and right == 0:
            return 0.0
    if not precisions:
        return 0.0
    _, length = min((abs(len(reference) - len(said)), len(reference)) for reference in known)
    brevity = min(1.0, math.exp(1 - length / len(said)))
    return brevity * math.prod(precisions) ** (1 / len(precisions))
