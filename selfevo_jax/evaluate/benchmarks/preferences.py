"""Preference pairs: how often is the chosen answer more likely than the rejected one?

UltraFeedback (Cui et al. 2023), binarised, and polite against impolite rewrites of
rasbt/LLMs-from-scratch. `acc` compares log-probabilities, `acc_norm` per character, which takes
the advantage of short answers away.
"""

from collections.abc import Callable

from selfevo_jax.evaluate.benchmark import Benchmark, Choose
from selfevo_jax.evaluate.data import Data, Row

PAIR = {"chosen": str, "rejected": str}


def _benchmark(name: str, data: Data, prompt: Callable[[Row], str]) -> Benchmark:
    return Benchmark(
        name=name,
        data=data,
        prompt=lambda row: f"{prompt(row)}\n\nAnswer:",
        target=lambda row: row["chosen"],
        ask=Choose(choices=lambda row: (row["chosen"], row["rejected"]), gold=lambda row: 0),
    )


def _comparable(row: Row) -> bool:
    """Ties (equal scores or equal texts) have no right answer, an empty text no probability."""
    scores = row.get("metadata") or {}
    level = scores.get("score_chosen") is not None and (
        scores["score_chosen"] == scores.get("score_rejected")
    )
    texts = row["chosen"], row["rejected"]
    return texts[0] != texts[1] and all(text.strip() for text in texts) and not level


BENCHMARKS = (
    _benchmark(
        "ultrafeedback",
        Data(
            files={"test": "ultrafeedback/clean.jsonl"},
            fields={"prompt": str} | PAIR,
            source="github.com/OpenBMB/UltraFeedback, licence MIT",
            keep=_comparable,
        ),
        lambda row: row["prompt"].strip(),
    ),
    _benchmark(
        "polite",
        Data(
            files={"test": "instruction_small/preference_data.jsonl"},
            fields={"instruction": str, "input": str} | PAIR,
            source="github.com/rasbt/LLMs-from-scratch, licence Apache-2.0",
            keep=_comparable,
        ),
        lambda row: f"{row['instruction']}\n{row['input']}".strip(),
    ),
)
