"""ROUGE and BLEU of single replies against Google's rouge-score and sacrebleu."""

import random

import pytest

from selfevo_jax.evaluate.benchmarks import instructions
from selfevo_jax.evaluate.bleu import sentence_bleu
from selfevo_jax.evaluate.readings import likeness
from selfevo_jax.evaluate.rouge import rouge_l, rouge_n
from selfevo_jax.evaluate.tasks import BENCHMARKS

WORDS = (
    "the", "cat", "sat", "on", "mat", "U.S.", "don't", "a-b", "3.5", "1,000", "7-", "Ünder", "",
    "!", "...", "&amp;", "x&lt;y", "f(x)=2", "<skipped>", "end-\n", "a\nb", "$5", "%", "-",
)  # fmt: skip


def texts(seed: int, most: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, most))) for _ in range(count)]


def test_rouge_is_that_of_the_rouge_score_package():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="extra parity")
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for one, two in zip(texts(0, 30, 500), texts(1, 30, 500), strict=True):
        theirs = {name: score.fmeasure for name, score in scorer.score(two, one).items()}
        ours = {"rouge1": rouge_n(one, two, 1), "rouge2": rouge_n(one, two, 2)}
        assert ours | {"rougeL": rouge_l(one, two)} == pytest.approx(theirs)


@pytest.mark.parametrize("references", [1, 3])
def test_bleu_is_that_of_sacrebleu(references):
    sacrebleu = pytest.importorskip("sacrebleu", reason="extra parity")
    above = 0
    for number, text in enumerate(texts(2, 25, 500)):
        known = texts(1000 + number, 25, references)
        theirs = sacrebleu.sentence_bleu(text, known).score / 100
        assert sentence_bleu(text, known) == pytest.approx(theirs, abs=1e-12), (text, known)
        above += theirs > 0.05
    assert above > 100  # most of the texts say something of each other


def test_bleu_by_hand():
    """Runs of 1 to 4: 5/6, 3/5, 1/4, and none of 3, which counts half a match; equal lengths."""
    found = sentence_bleu("the cat sat on the mat", ["the cat is on the mat"])
    assert found == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** (1 / 4))
    assert sentence_bleu("the cat", ["the cat sat on"]) == pytest.approx(2.718281828459045**-1)
    assert sentence_bleu("", ["x"]) == sentence_bleu("x", [""]) == 0.0


def test_free_answers_have_all_of_them():
    found = likeness("the mat", ["a cat", "the mat"])
    assert found == {"rougeL": 1.0, "rouge1": 1.0, "rouge2": 1.0, "sentence_bleu": 1.0}
    rows = {
        "natural_instructions": {"output": ["the mat"]},
        "natural_instructions:plain": {"output": ["the mat"]},
        **{f"{spec.name}:plain": {"output": "the mat"} for spec in instructions.SPECS},
    }
    for name, row in rows.items():
        (read,) = BENCHMARKS[name].ask.readings.values()
        scores = read("the mat", row).scores
        assert next(iter(scores)) == "rougeL" and "sentence_bleu" in scores, name
        assert set(scores.values()) == {1.0}
